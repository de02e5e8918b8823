#!/bin/sh
# Writes ./secrets for docker-compose.yml: root key, Postgres password, one file per service, the NATS users. Safe to repeat.
# A website's secrets and a provider's key that are set here (NEXTAUTH_SECRET, INTERNAL_API_SECRET, OA_INTERNAL_KEY, OPENAI_API_KEY)
# go into the files of the services that read them; set them again at each run.
set -eu
cd "$(dirname "$0")/.."
umask 077
# Files of an earlier run are read-only, and half a file must never stay: write beside it, then put it in its place.
keep() { cat > "secrets/.$1.new" && mv -f "secrets/.$1.new" "secrets/$1"; }
mkdir -p secrets
for name in root.key postgres-password; do
    if [ ! -s "secrets/$name" ]; then
        made=$(./hatchery secrets new-root)
        echo "$made" | keep "$name"
    fi
done
HATCHERY_ROOT_KEY=$(cat secrets/root.key)
HATCHERY_ADMIN_DATABASE_URL="postgresql://postgres:$(cat secrets/postgres-password)@postgres:5432/hatchery"
export HATCHERY_ROOT_KEY HATCHERY_ADMIN_DATABASE_URL
printf 'HATCHERY_ROOT_KEY=%s\nHATCHERY_ADMIN_DATABASE_URL=%s\n' "$HATCHERY_ROOT_KEY" "$HATCHERY_ADMIN_DATABASE_URL" | keep migrate.env
HATCHERY_NATS_URL=nats://nats:4222 ./hatchery secrets render --out secrets
./hatchery bus config --out secrets/authorization.conf
# Containers mount the files one by one and run as other uids: the files are readable, the directory is closed.
chmod 0700 secrets && chmod 0444 secrets/*
