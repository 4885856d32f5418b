// A clock that jumps, for a process that is started with it: Debian's faketime.
import { existsSync, readdirSync } from 'node:fs'
import { rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { testPrograms } from './optional-programs.ts'

export const faketime = testPrograms('clock that jumps', ['faketime'], () => library() !== undefined)

export interface Clock {
  /** What the process is started with; nothing where there is no faketime. */
  env: Record<string, string>
  /** Its clock is so many seconds off, within a second from now on. */
  jump: (seconds: number) => Promise<void>
  /** Removes what faketime shares among a process and its children, once that has ended: it would stay until the machine ends. */
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
    env: {
      LD_PRELOAD: preload, FAKETIME_TIMESTAMP_FILE: file, FAKETIME_CACHE_DURATION: '1',
      // The time of day jumps, as when somebody sets it; what timers count by does not.
      FAKETIME_DONT_FAKE_MONOTONIC: '1', DONT_FAKE_MONOTONIC: '1',
    },
    jump,
    async forget(pid) {
      for (const name of [`faketime_shm_${pid}`, `sem.faketime_sem_${pid}`]) await rm(join('/dev/shm', name), { force: true })
    },
  }
}

function library() {
  return readdirSync('/usr/lib', { withFileTypes: true })
    .filter(entry => entry.isDirectory() && entry.name.includes('-linux-'))
    .map(({ name }) => join('/usr/lib', name, 'faketime/libfaketimeMT.so.1'))
    .find(existsSync)
}
