"""The pure part: routes, chat events, transcripts, stream deadlines, usage and the demo model's words."""
