// Finds a PostgreSQL that has pg_cron and pg_partman, and installs one if that is possible.
import { execFile, spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { readdir, realpath } from 'node:fs/promises'
import { delimiter, join } from 'node:path'
import { promisify } from 'node:util'
import { isCI, plainEnv } from './config.ts'
import { say } from '../lib/progress.ts'

const run = promisify(execFile)
/** The oldest major version that works. */
export const OLDEST_POSTGRES = 15
const EXTENSIONS = ['pg_cron', 'pg_partman']

export interface Postgres {
  /** The major version, such as 15. */
  major: number
  /** The directory that contains postgres, initdb and psql. */
  bin: string
}

/** There is no PostgreSQL with the extensions, and it could not be installed. The message has the command that installs it. */
export class MissingPostgres extends Error {}

/**
 * The newest PostgreSQL on this machine that has both extensions, or the one of the given major version, which an existing
 * cluster needs. If there is none, the distribution's packages are installed, provided that this is root or sudo needs no
 * password, and that there is an apt-get.
 * @throws MissingPostgres with the command that installs it, if this process cannot
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

/** As requirePostgres, but without installing anything. Undefined if there is none. */
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
    return undefined // an incomplete installation; another candidate may be complete
  }
}

/** Debian's directories, those of the PGDG packages for Fedora and RHEL, of Homebrew and of Postgres.app, then the PATH. */
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

/** The words before a command that runs it as root: [] for root itself, sudo if it needs no password, otherwise undefined. */
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

/** Runs only once, no matter how often packages are installed. */
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
  // Debian would make and start a cluster "main" on port 5432, which nobody asked for. A line in createcluster.conf prevents
  // that. It is there only while these packages are unpacked, and only if this machine had no server of this version before:
  // otherwise its owner may have chosen differently.
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

// Debian starts the services of new packages, now and at each boot. Packages for the tests are started only by the tests. An
// existing policy-rc.d belongs to the owner of the machine and is not replaced.
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
 * Installs packages of this distribution if this is root or sudo needs no password, and if there is an apt-get.
 * @returns whether apt-get succeeded. Its failure is not an error here: the caller looks for what it needs.
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

/**
 * Installs the linter of PL/pgSQL for the tests if it is missing and this process may.
 * @returns whether it is here now
 */
export async function installPlpgsqlCheck({ major, bin }: Postgres) {
  return (
    (await hasPlpgsqlCheck(bin)) ||
    ((await installPackages([`postgresql-${major}-plpgsql-check`])) && (await hasPlpgsqlCheck(bin)))
  )
}

/** Why the test that needs it is skipped; false if it runs. In CI it always runs. */
export async function withoutPlpgsqlCheck({ major, bin }: Postgres) {
  return (await hasPlpgsqlCheck(bin)) || isCI()
    ? false
    : `there is no linter of PL/pgSQL: install postgresql-${major}-plpgsql-check`
}

async function hasPlpgsqlCheck(bin: string) {
  const sharedir = (await run(join(bin, 'pg_config'), ['--sharedir'], { env: plainEnv() })).stdout.trim()
  return existsSync(join(sharedir, 'extension', 'plpgsql_check.control'))
}

/** The newest version of PostgreSQL for which apt has all three packages. */
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

/** The command that installs what is missing on this platform. */
export function advice(major: number | undefined, has = existsSync) {
  const version = major ?? 17
  const then =
    'and run the same command again. (If DATABASE_URL is set, that database is used, and no PostgreSQL is needed on this machine.)'
  if (process.platform === 'darwin' || has('/opt/homebrew/bin/brew')) {
    return `Install it with:\n\n  brew install postgresql@${version} pg_cron pg_partman\n\n${then}`
  }
  if (has('/usr/bin/apt-get')) {
    const debian = `v=$(apt-cache search --names-only '^postgresql-[0-9]+-partman$' | sed 's/[^0-9]*\\([0-9]*\\).*/\\1/' | sort -n | tail -1)`
    const names = aptPackages(major ?? '$v').join(' ')
    return `Install it with:\n\n  sudo apt-get update\n${major ? '' : `  ${debian}\n`}  sudo apt-get install -y ${names}\n\n${then}`
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

/** Runs a command and shows its output as progress. */
function show([command = '', ...args]: string[]) {
  return new Promise<void>((resolve, reject) => {
    const child = spawn(command, args, { stdio: ['ignore', 'inherit', 'inherit'], env: plainEnv() })
    child.on('error', reject)
    child.on('exit', code => (code === 0 ? resolve() : reject(new Error(`${command} ${args[0]} ended with code ${code}`))))
  })
}
