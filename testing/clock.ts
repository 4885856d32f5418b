// Makes clocks that are wrong on purpose, with Debian's faketime: one that jumps, for a process in the drills, and one that is
// moved for a whole test run.
import { existsSync, readdirSync } from 'node:fs'
import { chmod, mkdtemp, readFile, realpath, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { testPrograms } from './optional-programs.ts'

export const faketime = testPrograms('clock that jumps', ['faketime'], () => library() !== undefined)

export interface Clock {
  /** Environment variables to start the process with. */
  env: Record<string, string>
  /** Sets the process's clock off by so many seconds. It takes effect within a second. */
  jump: (seconds: number) => Promise<void>
  /** The function forget() below. */
  forget: (pid: number) => Promise<void>
}

/**
 * @param isForPostgres for a cluster, whose user must be able to read the directory
 * @returns undefined if faketime is not installed
 */
export async function makeClock(directory: string, name: string, isForPostgres = false): Promise<Clock | undefined> {
  let preload = library()
  if (preload === undefined) return undefined
  if (isForPostgres) {
    const copy = join(directory, 'libfaketime.so')
    await writeFile(copy, withoutWaits(await readFile(preload)), { mode: 0o644 })
    preload = copy
  }
  const file = join(directory, `clock-${name}`)
  const jump = (seconds: number) => writeFile(file, `${seconds < 0 ? '' : '+'}${seconds}\n`)
  await jump(0)
  return {
    env: { LD_PRELOAD: preload, FAKETIME_TIMESTAMP_FILE: file, FAKETIME_CACHE_DURATION: '1', ...realTimers },
    jump,
    forget,
  }
}

// Only the time of day jumps, as if somebody changed it. Timers keep running on the real clock.
const realTimers = { FAKETIME_DONT_FAKE_MONOTONIC: '1', DONT_FAKE_MONOTONIC: '1' }

export interface MovedClock {
  /** Environment variables to start the run with. */
  env: Record<string, string>
  /** Removes the files of the clock after the run has ended; `pid` is the run's. */
  end: (pid: number) => Promise<void>
}

/**
 * Makes a clock for a test run that starts at `at` and runs at the usual pace. Everything that the run starts with plainEnv()
 * shares it, including Postgres.
 * @throws an Error if faketime is not installed
 */
export async function moveClock(at: Date): Promise<MovedClock> {
  const original = library()
  if (original === undefined) throw new Error('--at needs faketime, which is not installed; run apt-get install -y faketime')
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
 * Returns faketime's library without its own epoll_wait, poll and select. Inside these functions it does not move the clock, so a
 * signal handler that interrupts them sees the real time. Postgres then expected its statement_timeout, lock_timeout or
 * deadlock_timeout to expire in years, and kept waiting. Timers here are real, so the functions are not needed. Each is renamed
 * in the string by which the dynamic linker finds it.
 */
function withoutWaits(file: Buffer) {
  const copy = Buffer.from(file)
  // The strings of poll and select are the ends of ppoll and pselect.
  for (const name of ['epoll_wait', 'epoll_pwait', 'ppoll', 'pselect']) {
    const place = copy.indexOf(`\0${name}\0`)
    if (place < 0)
      throw new Error(`the installed faketime has no function ${name} to leave out; see withoutWaits in testing/clock.ts`)
    copy.write('_', place + name.length)
  }
  return copy
}

/**
 * Gives other users access to the files that faketime shares among the processes of this run, because Postgres and Ceph run as
 * other users. Otherwise each of them would make its own files in /dev/shm, and leave them there when it is killed.
 */
export async function shareClock(pid = process.pid) {
  for (const file of sharedFiles(pid)) await chmod(file, 0o666)
}

/** Removes the files that faketime shared between a process and its children. Otherwise they stay until the machine restarts. */
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
