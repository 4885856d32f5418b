// Measures how long the disk itself takes while Postgres writes to it. On a shared machine, others use it too.
import { open } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'

const PAGE = 8_192
const PAGES = 2_048

/**
 * Writes a page to a file of its own in the directory and waits for fdatasync, as a commit does, five times a second until it is
 * ended.
 */
export async function watchDisk(directory: string) {
  const file = await open(join(directory, 'disk-probe'), 'w')
  await file.writeFile(Buffer.alloc(PAGES * PAGE))
  await file.sync()
  const page = Buffer.alloc(PAGE, 1)
  let slowest = 0
  let over = false
  const watching = (async () => {
    for (let n = 0; !over; n++) {
      const before = performance.now()
      await file.write(page, 0, PAGE, (n % PAGES) * PAGE)
      await file.datasync()
      slowest = Math.max(slowest, performance.now() - before)
      await sleep(200)
    }
  })()
  return {
    /** The ms of the slowest fdatasync since the last call. */
    takeSlowest: () => {
      const taken = slowest
      slowest = 0
      return taken
    },
    end: async () => {
      over = true
      await watching
      await file.close()
    },
  }
}
