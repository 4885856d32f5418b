#!/bin/sh
# Makes the secrets of compose.yaml once: random ones in <directory>/all, and a copy of each for every service that needs it,
# which only that service's user may read. A second run changes nothing. A file that you put into all/ before the first run is
# kept.
# usage: make.sh <directory>
set -eu
umask 077
[ $# -eq 1 ] || { echo 'usage: make.sh <directory>' >&2; exit 2; }
root=$1
all=$root/all

# Writes a complete file or none.
write() {
  cat > "$1.new"
  mv "$1.new" "$1"
}

random() {
  for name in "$@"; do
    [ -s "$all/$name" ] || od -An -N24 -tx1 /dev/urandom | tr -d ' \n' | write "$all/$name"
  done
}

# give <directory> <user id> <file>...: root gives the copies to that user; anybody else keeps them.
give() {
  directory=$root/$1 user=$2
  shift 2
  mkdir -p "$directory"
  chmod 755 "$directory"
  for name in "$@"; do
    rm -f "$directory/$name.new"
    cat "$all/$name" > "$directory/$name.new"
    chmod 400 "$directory/$name.new"
    [ "$(id -u)" != 0 ] || chown "$user" "$directory/$name.new"
    mv -f "$directory/$name.new" "$directory/$name"
  done
}

mkdir -p "$all"
random postgres_password fleet_server_password fleet_archiver_password fleet_notifier_password fleet_reader_password \
  fleet_dba_password \
  admin_key grafana_admin_password s3_access_key s3_secret_key

printf '"fleet_server" "%s"\n' "$(cat "$all/fleet_server_password")" | write "$all/userlist.txt"
write "$all/s3.json" << END
{"identities": [{
  "name": "archiver",
  "credentials": [{"accessKey": "$(cat "$all/s3_access_key")", "secretKey": "$(cat "$all/s3_secret_key")"}],
  "actions": ["Admin", "Read", "Write", "List"]
}]}
END

# The user ids of the images: node and SeaweedFS 1000, Postgres 999, pgBouncer (our image) 6432, nobody 65534, Grafana 472.
give postgres 999 postgres_password
give migrate 1000 postgres_password fleet_server_password fleet_archiver_password fleet_notifier_password \
  fleet_reader_password fleet_dba_password
give server 1000 fleet_server_password admin_key
give pgbouncer 6432 userlist.txt
give archiver 1000 fleet_archiver_password s3_access_key s3_secret_key
give notifier 1000 fleet_notifier_password
give objects 1000 s3.json
give prometheus 65534 admin_key
give grafana 472 grafana_admin_password fleet_reader_password
echo "the secrets are in $root"
