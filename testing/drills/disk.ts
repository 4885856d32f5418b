// A small disk that can be filled up: a tmpfs of its own.
import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdir, rm, statfs, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'

const run = promisify(execFile)

export interface Disk {
  directory: string
  /** Leaves so many bytes free. */
  fill: (free: number) => Promise<void>
  empty: () => Promise<void>
  end: () => Promise<unknown>
}

/** @returns undefined where a process may not mount one; only root may */
export async function makeDisk(directory: string, megabytes: number): Promise<Disk | undefined> {
  await mkdir(directory)
  try {
    await run('mount', ['-t', 'tmpfs', '-o', `size=${megabytes}m`, 'tmpfs', directory])
  } catch {
    return undefined
  }
  // It goes when this process does, however that ends: a shell waits at the other end of a pipe.
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
        // Somebody wrote meanwhile: so much the fuller.
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
