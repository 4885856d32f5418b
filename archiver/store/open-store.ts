import { archiveUrlProblem } from './archive-url.ts'
import { createFileStore } from './file-store.ts'
import type { Store, StoreOptions } from './store.ts'

/**
 * Opens `file:///absolute/path` or `s3://bucket/prefix`. Nothing is read or written yet. Which server an s3:// URL is asked of
 * is a setting of the process: no URL, wherever it came from, can name one.
 */
export async function openStore(url: string, options: StoreOptions = {}): Promise<Store> {
  const problem = archiveUrlProblem(url)
  if (problem !== undefined) throw new Error(`the URL of a store: ${problem}`)
  if (url.startsWith('file:')) return createFileStore(url)
  // The AWS SDK is 13 to 21 MB of memory and a quarter of a second of CPU, which an archive in a directory does not need.
  const { createS3Store } = await import('./s3-store.ts')
  const current = { endpoint: options.s3Endpoint, ...options.bucketRules }
  return createS3Store(url, options.olderStores?.get(new URL(url).hostname) ?? current)
}

/**
 * Finds the object an `archive_url` means: in the store in use, or in another one, because archives
 * made before ARCHIVE_URL was changed stay readable.
 */
export async function locate(objectUrl: string, current: Store, options: StoreOptions = {}) {
  if (objectUrl.startsWith(`${current.url}/`)) {
    return { store: current, key: objectUrl.slice(current.url.length + 1) }
  }
  const slash = objectUrl.lastIndexOf('/')
  return { store: await openStore(objectUrl.slice(0, slash), options), key: objectUrl.slice(slash + 1) }
}

/**
 * Opens the whole store that an archive is in, in use or not, and finds the keys of its object there.
 * @param root what keys begin with: `device_heartbeats/`
 * @throws if the URL is not that of an archive
 */
export async function locateInStore(objectUrl: string, root: string, current: Store, options: StoreOptions = {}) {
  const at = objectUrl.lastIndexOf(`/${root}date=`)
  if (at === -1) throw new Error(`${objectUrl}: this is not the place of an archive`)
  const url = objectUrl.slice(0, at)
  return { store: url === current.url ? current : await openStore(url, options), key: objectUrl.slice(at + 1) }
}
