#!/bin/sh
# Runs before node. Installs the npm packages if they are missing or older than package-lock.json.
set -eu
cd "$(dirname "$0")/.."

if ! node -e 'process.exit(typeof require("crypto").hash === "function" ? 0 : 1)'; then
  echo "Node 20.12 or newer is needed; this is $(node --version)." >&2
  exit 1
fi

installed=node_modules/.package-lock.json
if [ ! -e "$installed" ] || [ -n "$(find package-lock.json -newer "$installed")" ]; then
  echo 'Installing the npm packages (one or two minutes the first time) ...'
  # Installs development packages too, no matter what NODE_ENV says, because the tests need them. npm holds back the install
  # scripts of some packages (esbuild). They work without them, because they ship their binaries.
  npm ci --include=dev --no-audit --no-fund
  # npm ci may leave the time of an unchanged list as it is, and then this would run again at every start.
  touch "$installed"
fi
