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
  const { signing } = options
  if (url.startsWith('file:')) return Object.assign(createFileStore(url), { signing })
  // The AWS SDK is 13 to 21 MB of memory and a quarter of a second of CPU, which an archive in a directory does not need.
  const { createS3Store } = await import('./s3-store.ts')
  const current = { endpoint: options.s3Endpoint, ...options.bucketRules }
  return Object.assign(createS3Store(url, options.olderStores?.get(new URL(url).hostname) ?? current), { signing })
}

/**
 * Finds the object that an `archive_url` means: in the store in use, or in another one, because archives
 * made before ARCHIVE_URL was changed stay readable.
 */
export async function locate(objectUrl: string, current: Store, options: StoreOptions = {}) {
  if (objectUrl.startsWith(`${current.url}/`)) {
    return { store: current, key: objectUrl.slice(current.url.length + 1) }
  }
  const root = objectUrl.lastIndexOf('/device_heartbeats/date=')
  const end = root === -1 ? objectUrl.lastIndexOf('/') : root
  return { store: await openStore(objectUrl.slice(0, end), options), key: objectUrl.slice(end + 1) }
}
