import { createHash, randomBytes } from 'node:crypto'
import { constants, createWriteStream } from 'node:fs'
import { access, mkdir, open, readFile, readdir, rename, rm, stat, unlink } from 'node:fs/promises'
import { basename, dirname, join, relative, sep } from 'node:path'
import { Transform } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { fileURLToPath } from 'node:url'
import { ObjectMissing } from './object-missing.ts'
import type { Store } from './store.ts'

/** A directory as a store. Writes to a temporary name, fsyncs, renames, fsyncs the directory: readers see no partial file. */
export function createFileStore(url: string): Store {
  const root = fileURLToPath(url)
  const urlOf = (key: string) => `${url}/${key}`

  /** @throws if the key leads out of the store */
  function pathOf(key: string) {
    const path = join(root, key)
    if (!path.startsWith(root.endsWith(sep) ? root : `${root}${sep}`))
      throw new Error(`${urlOf(key)}: this key leads out of the store`)
    return path
  }

  async function write(key: string, source: (temporary: string) => Promise<void>) {
    const target = pathOf(key)
    const directory = dirname(target)
    await mkdir(directory, { recursive: true })
    await removeParts(target)
    const temporary = join(directory, `.${basename(target)}.${randomBytes(6).toString('hex')}.part`)
    try {
      await source(temporary)
      await flush(temporary)
      await rename(temporary, target)
      // The name must survive a power failure too, and so must the directories that were created for it.
      for (let made = directory; made.startsWith(root); made = dirname(made)) await flush(made)
    } catch (cause) {
      await rm(temporary, { force: true })
      throw new Error(`${urlOf(key)}: could not be written`, { cause })
    }
  }

  return {
    url,
    async check() {
      try {
        await mkdir(root, { recursive: true })
        await access(root, constants.W_OK | constants.X_OK)
      } catch (cause) {
        throw new Error(`${url}: this process cannot write to this directory`, { cause })
      }
    },
    async put(key, file, sha256, signal) {
      await write(key, async temporary => {
        const copied = await copy(file, temporary, signal)
        if (copied.sha256 !== sha256) {
          throw new Error(`${file} has sha256 ${copied.sha256}, expected ${sha256}; nothing was stored`)
        }
      })
    },
    async putBytes(key, bytes) {
      await write(key, async temporary => {
        const handle = await open(temporary, 'wx')
        await handle.writeFile(bytes).finally(() => handle.close())
      })
    },
    async getToFile(key, file, signal) {
      try {
        return await copy(pathOf(key), file, signal)
      } catch (cause) {
        throw isMissing(cause) ? new ObjectMissing(urlOf(key)) : new Error(`${urlOf(key)}: could not be read`, { cause })
      }
    },
    async getBytes(key) {
      try {
        return await readFile(pathOf(key))
      } catch (cause) {
        throw isMissing(cause) ? new ObjectMissing(urlOf(key)) : new Error(`${urlOf(key)}: could not be read`, { cause })
      }
    },
    async head(key) {
      try {
        const found = await stat(pathOf(key))
        return { key, bytes: found.size }
      } catch (cause) {
        if (isMissing(cause)) return undefined
        throw new Error(`${urlOf(key)}: could not be read`, { cause })
      }
    },
    async *list(prefix) {
      const keys: string[] = []
      try {
        for (const entry of await readdir(root, { recursive: true, withFileTypes: true })) {
          if (!entry.isFile() || entry.name.startsWith('.')) continue
          keys.push(relative(root, join(entry.parentPath, entry.name)).split(sep).join('/'))
        }
      } catch (cause) {
        if (isMissing(cause)) return
        throw new Error(`${url}: could not be listed`, { cause })
      }
      for (const key of keys.filter(key => key.startsWith(prefix)).sort()) {
        const found = await this.head(key)
        if (found) yield found
      }
    },
    async delete(key) {
      const target = pathOf(key)
      await rm(target, { force: true })
      try {
        // What a killed writer left may hold the same rows.
        await removeParts(target)
        await flush(dirname(target))
      } catch (error) {
        if (!isMissing(error)) throw error
      }
    },
  }
}

async function copy(from: string, to: string, signal?: AbortSignal) {
  const hash = createHash('sha256')
  let bytes = 0
  // Opened first, so that no empty copy is left behind if the source is missing.
  const source = await open(from)
  await pipeline(
    source.createReadStream({ highWaterMark: 1 << 20 }),
    new Transform({
      highWaterMark: 1 << 20,
      transform(chunk: Buffer, _encoding, done) {
        hash.update(chunk)
        bytes += chunk.length
        done(null, chunk)
      },
    }),
    createWriteStream(to, { flags: 'wx' }),
    { signal },
  )
  return { bytes, sha256: hash.digest('hex') }
}

/** Removes what a killed writer left. Only the holder of a partition's lease writes its keys. */
async function removeParts(target: string) {
  const directory = dirname(target)
  for (const name of await readdir(directory)) {
    if (name.startsWith(`.${basename(target)}.`) && name.endsWith('.part')) {
      await unlink(join(directory, name)).catch(() => {})
    }
  }
}

async function flush(path: string) {
  const handle = await open(path, 'r')
  await handle.sync().finally(() => handle.close())
}

function isMissing(error: unknown) {
  return error instanceof Error && 'code' in error && (error.code === 'ENOENT' || error.code === 'ENOTDIR')
}
