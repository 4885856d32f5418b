import type { ChildProcess } from 'node:child_process'

/** Whether a process with this id runs; with `isOurs`, only one that this user may signal counts. */
export function isAlive(pid: number, { isOurs = false } = {}) {
  try {
    return process.kill(pid, 0)
  } catch (error) {
    // EPERM: it runs, and belongs to another user.
    return !isOurs && (error as NodeJS.ErrnoException).code === 'EPERM'
  }
}

/** Whether a child has exited, by itself or by a signal. */
export function hasEnded(child: ChildProcess) {
  return child.exitCode !== null || child.signalCode !== null
}
