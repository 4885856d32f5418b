import type { Store } from '../store/store.ts'

/**
 * Stores a local file, and asks whether all of it is there: a store may confirm an object that it then loses, and a manifest without
 * its file would block other content of this day.
 * @throws an error that names the object
 */
export async function upload(
  store: Store,
  key: string,
  file: string,
  { bytes, sha256 }: { bytes: number; sha256: string },
  signal?: AbortSignal,
) {
  await store.put(key, file, sha256, signal)
  const stored = await store.head(key, signal)
  if (stored?.bytes !== bytes) {
    throw new Error(
      `${store.url}/${key}: the store confirmed this object, but ` +
        (stored ? `has ${stored.bytes} of its ${bytes} bytes` : 'does not have it'),
    )
  }
}
