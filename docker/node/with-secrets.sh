#!/bin/sh
# Runs a command with secrets that are read from files: ADMIN_KEY_FILE=/run/secrets/admin_key becomes ADMIN_KEY. Only the secrets
# listed here are read from files; other variables, such as AWS_CONFIG_FILE, keep their meaning. PGPASSWORD is the password of
# URLs that have none.
set -eu

fail() {
  echo "$1" >&2
  exit 2
}

for name in ADMIN_KEY PGPASSWORD \
  DATABASE_URL OWNER_DATABASE_URL SERVER_DATABASE_URL OPS_DATABASE_URL READ_DATABASE_URL ARCHIVER_DATABASE_URL \
  NOTIFIER_DATABASE_URL VERIFIER_DATABASE_URL FLEET_VERIFIER_PASSWORD FLEET_NOTIFIER_PASSWORD \
  FLEET_SERVER_PASSWORD FLEET_ARCHIVER_PASSWORD FLEET_READER_PASSWORD FLEET_DBA_PASSWORD FLEET_OWNER_PASSWORD \
  AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN; do
  eval "file=\${${name}_FILE-} given=\${$name-}"
  [ -n "$file" ] || continue
  [ -z "$given" ] || fail "$name and ${name}_FILE are both set; remove one of them."
  value=$(cat "$file") || fail "${name}_FILE: $file cannot be read."
  [ -n "$value" ] || fail "${name}_FILE: $file is empty."
  export "$name=$value"
  unset "${name}_FILE"
done
exec "$@"
