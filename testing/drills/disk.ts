// Makes a small disk that can be filled: a tmpfs.
import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdir, rm, statfs, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'

const run = promisify(execFile)

export interface Disk {
  directory: string
  /** Fills it until `free` bytes are left. */
  fill: (free: number) => Promise<void>
  empty: () => Promise<void>
  end: () => Promise<unknown>
}

/** @returns undefined if this process may not mount one; only root may */
export async function makeDisk(directory: string, megabytes: number): Promise<Disk | undefined> {
  await mkdir(directory)
  try {
    await run('mount', ['-t', 'tmpfs', '-o', `size=${megabytes}m`, 'tmpfs', directory])
  } catch {
    return undefined
  }
  // It is unmounted when this process ends, no matter how: a shell waits at the other end of a pipe.
  const guard = spawn('sh', ['-c', 'cat > /dev/null; umount -l "$1"', 'guard', directory], {
    detached: true,
    stdio: ['pipe', 'ignore', 'ignore'],
    cwd: '/',
  })
  guard.unref()
  const ended = once(guard, 'exit')
  const ballast = join(directory, 'ballast')
  return {
    directory,
    async fill(free) {
      const { bavail, bsize } = await statfs(directory)
      await writeFile(ballast, Buffer.alloc(Math.max(0, bavail * bsize - free))).catch((error: NodeJS.ErrnoException) => {
        // Another process wrote in the meantime, so the disk is already full.
        if (error.code !== 'ENOSPC') throw error
      })
    },
    empty: () => rm(ballast, { force: true }),
    async end() {
      guard.ref()
      guard.stdin.end()
      await ended
    },
  }
}
