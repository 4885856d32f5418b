#!/bin/sh
# Runs before node: installs the npm packages when they are missing or older than package-lock.json.
set -eu
cd "$(dirname "$0")/.."

if ! node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)'; then
  echo "Node 20 or newer is needed; this is $(node --version)." >&2
  exit 1
fi

installed=node_modules/.package-lock.json
if [ ! -e "$installed" ] || [ -n "$(find package-lock.json -newer "$installed")" ]; then
  echo 'Installing the npm packages (one or two minutes the first time) ...'
  # Development packages too, whatever NODE_ENV says: the tests need them. Packages whose install
  # scripts npm holds back (esbuild) work without them, they ship their binaries.
  npm ci --include=dev --no-audit --no-fund
  # npm ci may keep the time of an unchanged list, and would run again at every start.
  touch "$installed"
fi
