// Clocks that are wrong on purpose, by Debian's faketime: one that jumps, for a process of the drills, and one that is moved for a whole run of the tests.
import { existsSync, readdirSync } from 'node:fs'
import { chmod, mkdtemp, readFile, realpath, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { testPrograms } from './optional-programs.ts'

export const faketime = testPrograms('clock that jumps', ['faketime'], () => library() !== undefined)

export interface Clock {
  /** What the process is started with; nothing where there is no faketime. */
  env: Record<string, string>
  /** Its clock is so many seconds off, within a second from now on. */
  jump: (seconds: number) => Promise<void>
  /** See below. */
  forget: (pid: number) => Promise<void>
}

/** @returns undefined where faketime is not installed */
export async function makeClock(directory: string, name: string): Promise<Clock | undefined> {
  const preload = library()
  if (preload === undefined) return undefined
  const file = join(directory, `clock-${name}`)
  const jump = (seconds: number) => writeFile(file, `${seconds < 0 ? '' : '+'}${seconds}\n`)
  await jump(0)
  return {
    env: { LD_PRELOAD: preload, FAKETIME_TIMESTAMP_FILE: file, FAKETIME_CACHE_DURATION: '1', ...realTimers },
    jump,
    forget,
  }
}

// The time of day jumps, as when somebody sets it; what timers count by does not.
const realTimers = { FAKETIME_DONT_FAKE_MONOTONIC: '1', DONT_FAKE_MONOTONIC: '1' }

export interface MovedClock {
  /** What the run is started with. */
  env: Record<string, string>
  /** Removes what it needs, once the run has ended; `pid` is the run's. */
  end: (pid: number) => Promise<void>
}

/**
 * The clock of a test run that takes place at another time: it begins at `at` and goes on at its usual pace. Everything that the run starts with
 * plainEnv() shares it, Postgres too. Throws where faketime is not installed.
 */
export async function moveClock(at: Date): Promise<MovedClock> {
  const original = library()
  if (original === undefined) throw new Error('--at moves the clock by faketime, which is not installed; install it by: apt-get install -y faketime')
  const directory = await mkdtemp(join(await realpath(tmpdir()), 'nexmdm-clock-'))
  await chmod(directory, 0o755) // Postgres and Ceph run as other users
  const preload = join(directory, 'libfaketime.so')
  await writeFile(preload, withoutWaits(await readFile(original)), { mode: 0o644 })
  const seconds = Math.round((at.getTime() - Date.now()) / 1000)
  return {
    env: { FLEET_TEST_AT: at.toISOString(), LD_PRELOAD: preload, FAKETIME: `${seconds < 0 ? '' : '+'}${seconds}`, ...realTimers },
    async end(pid) {
      await rm(directory, { recursive: true, force: true })
      await forget(pid)
    },
  }
}

/**
 * faketime without its own epoll_wait, poll and select. Inside of these it does not move the clock, so that a signal handler that interrupts them sees the
 * real time: Postgres then took a statement_timeout, a lock_timeout or a deadlock_timeout for one that is due in years, and waited. Timers here are real,
 * and so they are not needed. Each is renamed where the dynamic linker looks it up, in the first of the strings.
 */
function withoutWaits(file: Buffer) {
  const copy = Buffer.from(file)
  // poll and select are the ends of the names of their siblings.
  for (const name of ['epoll_wait', 'epoll_pwait', 'ppoll', 'pselect']) {
    const place = copy.indexOf(`\0${name}\0`)
    if (place < 0) throw new Error(`the faketime that is installed has no ${name} to leave out: see withoutWaits in local/clock.ts`)
    copy.write('_', place + name.length)
  }
  return copy
}

/**
 * Opens what faketime shares among the processes of this run to those of other users, as whom Postgres and Ceph run. Otherwise each of them would
 * make files of its own in /dev/shm, and leave them there when it is killed.
 */
export async function shareClock(pid = process.pid) {
  for (const file of sharedFiles(pid)) await chmod(file, 0o666)
}

/** Removes what faketime shares among a process and its children, once that has ended: it would stay until the machine ends. */
export async function forget(pid: number) {
  for (const file of sharedFiles(pid)) await rm(file, { force: true })
}

function sharedFiles(pid: number) {
  return [`faketime_shm_${pid}`, `sem.faketime_sem_${pid}`].map(name => join('/dev/shm', name))
}

function library() {
  return readdirSync('/usr/lib', { withFileTypes: true })
    .filter(entry => entry.isDirectory() && entry.name.includes('-linux-'))
    .map(({ name }) => join('/usr/lib', name, 'faketime/libfaketimeMT.so.1'))
    .find(existsSync)
}
