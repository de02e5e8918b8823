"""What `up` prints when the stack is ready: where to click, and a walk with curl."""

from __future__ import annotations

from hatchery_cli.embedded.isolation import REMEDY
from hatchery_cli.embedded.layout import Choices, Layout, Ports, usual_directory


def welcome(
    layout: Layout, choices: Choices, seconds: float, *, detached: bool = False, warning: str | None = None
) -> str:
    """The text, in rich markup; `warning` says what isolation is missing."""
    api = f"http://127.0.0.1:{Ports(choices.port).api}"
    # HATCHERY_DIR may hold for the command alone that started this, so what it names is named.
    where = "" if layout.root == usual_directory() else f" --dir {layout.root}"
    end = f"stop it with: ./hatchery down{where}" if detached else "Ctrl-C stops everything in order"
    warned = f"\n[yellow]warning\\[isolation_none][/]: {warning}\n  → {REMEDY}\n" if warning else ""
    return f"""
[bold green]Hatchery is ready[/] after {seconds:.1f} s, in {layout.root}; {end}

  API and its reference   {api}/docs
  state and crashes       ./hatchery status{where}
{warned}
Try it (one user, one machine, one answer):

  TOKEN=$(./hatchery token create --user you@example.com{where})
  curl -s -X POST {api}/api/openclaw/instance -H "Authorization: Bearer $TOKEN"
  curl -s {api}/api/openclaw/instance -H "Authorization: Bearer $TOKEN"
  curl -sN -X POST {api}/api/openclaw/chat -H "Authorization: Bearer $TOKEN" \\
       -H 'Content-Type: application/json' -d '{{"message": "hello"}}'
"""
