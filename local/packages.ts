// Finds a PostgreSQL that has pg_cron and pg_partman, and installs one where it may.
import { execFile, spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { readdir, realpath } from 'node:fs/promises'
import { delimiter, join } from 'node:path'
import { promisify } from 'node:util'
import { isCI, plainEnv } from './config.ts'
import { say } from '../lib/progress.ts'

const run = promisify(execFile)
const OLDEST_POSTGRES = 15
const EXTENSIONS = ['pg_cron', 'pg_partman']

export interface Postgres {
  /** The major version, such as 15. */
  major: number
  /** The directory of postgres, initdb and psql. */
  bin: string
}

/** No PostgreSQL with the extensions, and not allowed to install one; the message has the command. */
export class MissingPostgres extends Error {}

/**
 * The newest PostgreSQL here that has both extensions; of the given major version when there is one
 * to keep. Installs the distribution's packages when there is none and it may (root, or sudo without a
 * password, and apt-get); else throws MissingPostgres with the command that would.
 */
export async function requirePostgres(major?: number): Promise<Postgres> {
  const found = await findPostgres(major)
  if (found) return found
  const wanted = major ? `PostgreSQL ${major}` : `PostgreSQL ${OLDEST_POSTGRES} or newer`
  say(`${wanted} with pg_cron and pg_partman was not found on this machine.`)
  const become = await privilege()
  if (!become || !existsSync('/usr/bin/apt-get')) throw new MissingPostgres(advice(major))
  await installWithApt(become, major)
  const installed = await findPostgres(major)
  if (installed) return installed
  throw new MissingPostgres(`${wanted} with pg_cron and pg_partman is still missing after the installation.\n${advice(major)}`)
}

/** As requirePostgres, without installing anything; undefined when there is none. */
export async function findPostgres(major?: number, directories?: string[]): Promise<Postgres | undefined> {
  const candidates: Postgres[] = []
  for (const bin of directories ?? (await likelyDirectories())) {
    if (!existsSync(join(bin, 'initdb'))) continue
    const installed = await inspect(bin)
    if (installed) candidates.push(installed)
  }
  return candidates
    .filter(candidate => candidate.major >= OLDEST_POSTGRES && (!major || candidate.major === major))
    .sort((a, b) => b.major - a.major)[0]
}

async function inspect(bin: string): Promise<Postgres | undefined> {
  try {
    const { stdout } = await run(join(bin, 'postgres'), ['--version'], { env: plainEnv() })
    const major = Number(/\) (\d+)/.exec(stdout)?.[1])
    const sharedir = (await run(join(bin, 'pg_config'), ['--sharedir'], { env: plainEnv() })).stdout.trim()
    const complete = EXTENSIONS.every(name => existsSync(join(sharedir, 'extension', `${name}.control`)))
    return complete && Number.isInteger(major) ? { major, bin } : undefined
  } catch {
    return undefined // half an installation; another candidate may be whole
  }
}

/** Debian, the PGDG packages for Fedora and RHEL, Homebrew, Postgres.app, then the PATH. */
async function likelyDirectories() {
  const parents: [string, (name: string) => string][] = [
    ['/usr/lib/postgresql', name => `${name}/bin`],
    ['/usr', name => (name.startsWith('pgsql-') ? `${name}/bin` : '')],
    ['/opt/homebrew/opt', name => (name.startsWith('postgresql') ? `${name}/bin` : '')],
    ['/usr/local/opt', name => (name.startsWith('postgresql') ? `${name}/bin` : '')],
    ['/home/linuxbrew/.linuxbrew/opt', name => (name.startsWith('postgresql') ? `${name}/bin` : '')],
    ['/Applications/Postgres.app/Contents/Versions', name => `${name}/bin`],
  ]
  const directories: string[] = []
  for (const [parent, below] of parents) {
    const names = await readdir(parent).catch(() => [])
    directories.push(
      ...names
        .map(below)
        .filter(Boolean)
        .map(path => join(parent, path)),
    )
  }
  directories.push(...(plainEnv().PATH ?? '').split(delimiter).filter(Boolean))
  const real = await Promise.all(directories.map(directory => realpath(directory).catch(() => directory)))
  return [...new Set(real)]
}

/** How to run a command as root: [] for root, sudo when it asks nothing, undefined when not at all. */
async function privilege(): Promise<string[] | undefined> {
  if (process.getuid?.() === 0) return []
  try {
    await run('sudo', ['-n', 'true'], { env: plainEnv() })
    return ['sudo', '-n']
  } catch {
    return undefined
  }
}

let updated: Promise<void> | undefined

/** Once, however much is installed. */
function updateApt(become: string[]) {
  return (updated ??= show([...become, 'apt-get', '-q', 'update']))
}

async function installWithApt(become: string[], major: number | undefined) {
  say('Installing the packages of this distribution ...')
  await updateApt(become)
  const version = major ?? (await newestInApt())
  if (!version) {
    throw new MissingPostgres(
      `apt offers no postgresql-NN with postgresql-NN-cron and postgresql-NN-partman for NN ≥ ${OLDEST_POSTGRES}. ` +
        'The PostgreSQL project does: https://wiki.postgresql.org/wiki/Apt',
    )
  }
  const names = aptPackages(version)
  say(`Installing ${names.join(' ')} ...`)
  // Debian would make and start a cluster "main" on port 5432, which nobody asked for. Its own switch is a
  // line in createcluster.conf; the line is there only while these packages are unpacked, and only when
  // this machine had no server of this version whose owner may have chosen otherwise.
  const script = `
    set -e
    export DEBIAN_FRONTEND=noninteractive
    install() { apt-get -q install -y --no-install-recommends "$@"; }
    conf=/etc/postgresql-common/createcluster.conf
    [ -e "$conf" ] || install postgresql-common
    if [ ! -e "/usr/lib/postgresql/$1/bin/initdb" ] && [ -e "$conf" ]; then
      cp -p "$conf" "$conf.kept"
      trap 'mv "$conf.kept" "$conf"' EXIT
      trap 'exit 1' INT TERM HUP
      echo 'create_main_cluster = false' >> "$conf"
    fi
    shift
    install "$@"`
  await show([...become, 'sh', '-c', script, 'install', String(version), ...names])
}

// Debian starts the services of new packages, now and at each boot; what is installed for tests only starts with them. A
// policy-rc.d that is there already is its owner's.
const QUIET_INSTALL = `
  set -e
  export DEBIAN_FRONTEND=noninteractive
  policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 1' INT TERM HUP
    printf '#!/bin/sh\\nexit 101\\n' > "$policy"
    chmod 755 "$policy"
  fi
  new=
  for name in "$@"; do
    dpkg -s "$name" > /dev/null 2>&1 || new="$new $name"
  done
  apt-get -q install -y --no-install-recommends "$@"
  for name in $new; do
    if [ -e "/etc/init.d/$name" ]; then update-rc.d "$name" disable; fi
  done`

/**
 * Installs packages of this distribution when it may (root, or sudo without a password, and apt-get); whether it did.
 * A failing apt-get is no error here: the caller looks for what it needed.
 */
export async function installPackages(names: string[]) {
  const become = await privilege()
  if (!become || !existsSync('/usr/bin/apt-get')) return false
  say(`Installing ${names.join(' ')} ...`)
  try {
    await updateApt(become)
    await show([...become, 'sh', '-c', QUIET_INSTALL, 'install', ...names])
    return true
  } catch (error) {
    say(error instanceof Error ? error.message : String(error))
    return false
  }
}

/** Installs the linter of PL/pgSQL for the tests when it is missing and that is allowed; whether it is here. */
export async function installPlpgsqlCheck({ major, bin }: Postgres) {
  return (
    (await hasPlpgsqlCheck(bin)) ||
    ((await installPackages([`postgresql-${major}-plpgsql-check`])) && (await hasPlpgsqlCheck(bin)))
  )
}

/** Why the test that needs it is skipped; false when it is not. In CI it never is. */
export async function withoutPlpgsqlCheck({ major, bin }: Postgres) {
  return (await hasPlpgsqlCheck(bin)) || isCI() ? false : `no linter of PL/pgSQL: install postgresql-${major}-plpgsql-check`
}

async function hasPlpgsqlCheck(bin: string) {
  const sharedir = (await run(join(bin, 'pg_config'), ['--sharedir'], { env: plainEnv() })).stdout.trim()
  return existsSync(join(sharedir, 'extension', 'plpgsql_check.control'))
}

/** The newest version of which apt knows all three packages. */
async function newestInApt() {
  const { stdout } = await run('apt-cache', ['search', '--names-only', '^postgresql-[0-9]+(-cron|-partman)?$'], {
    env: plainEnv(),
  })
  const known = new Set(stdout.split('\n').map(line => line.split(' ')[0] ?? ''))
  return [...known]
    .map(name => Number(/^postgresql-(\d+)$/.exec(name)?.[1]))
    .filter(version => version >= OLDEST_POSTGRES && aptPackages(version).every(name => known.has(name)))
    .sort((a, b) => b - a)[0]
}

function aptPackages(version: number | string) {
  return [`postgresql-${version}`, `postgresql-${version}-cron`, `postgresql-${version}-partman`]
}

/** The command that would install what is missing, for the platform this runs on. */
export function advice(major: number | undefined, has = existsSync) {
  const version = major ?? 17
  const then = 'and run the same command again. (With DATABASE_URL set, that database is used and nothing is needed here.)'
  if (process.platform === 'darwin' || has('/opt/homebrew/bin/brew')) {
    return `Install it by:\n\n  brew install postgresql@${version} pg_cron pg_partman\n\n${then}`
  }
  if (has('/usr/bin/apt-get')) {
    const debian = `v=$(apt-cache search --names-only '^postgresql-[0-9]+-partman$' | sed 's/[^0-9]*\\([0-9]*\\).*/\\1/' | sort -n | tail -1)`
    const names = aptPackages(major ?? '$v').join(' ')
    return `Install it by:\n\n  sudo apt-get update\n${major ? '' : `  ${debian}\n`}  sudo apt-get install -y ${names}\n\n${then}`
  }
  if (has('/usr/bin/dnf')) {
    const names = `postgresql${version}-server postgresql${version}-contrib pg_cron_${version} pg_partman_${version}`
    return (
      'Install it from the repository of the PostgreSQL project (https://www.postgresql.org/download/linux/redhat/):\n\n' +
      `  sudo dnf install -y ${names}\n\n${then}`
    )
  }
  return `Install PostgreSQL ${major ?? `${OLDEST_POSTGRES} or newer`} with the extensions pg_cron and pg_partman, ${then}`
}

/** Runs a command whose output is the progress. */
function show([command = '', ...args]: string[]) {
  return new Promise<void>((resolve, reject) => {
    const child = spawn(command, args, { stdio: ['ignore', 'inherit', 'inherit'], env: plainEnv() })
    child.on('error', reject)
    child.on('exit', code => (code === 0 ? resolve() : reject(new Error(`${command} ${args[0]} ended with code ${code}`))))
  })
}
