import type { Signing } from '../archive/signature.ts'
import type { CHECKSUMS, ENCRYPTIONS } from '../../lib/settings.ts'

/** What a store knows about one object. */
export interface StoredObject {
  key: string
  bytes: number
}

/**
 * Where archives are stored. Keys are relative to the store's URL, with `/` between their parts. An object
 * appears whole or not at all. Storing a key again replaces it. Every error is a sentence that names the object.
 */
export interface Store {
  /** The URL that the store was opened with, without a slash at the end. */
  url: string
  /** What manifests written here are signed with, and whose signatures count. */
  signing?: Signing | undefined
  /** Throws an error for the person on call if nothing can be stored here now. */
  check(signal?: AbortSignal): Promise<void>
  /** Stores a local file. `sha256` (hex) is checked on the way if the store can. */
  put(key: string, file: string, sha256: string, signal?: AbortSignal): Promise<void>
  putBytes(key: string, bytes: Uint8Array, signal?: AbortSignal): Promise<void>
  /** Copies an object into a new local file, and returns what was read. @throws {ObjectMissing} */
  getToFile(key: string, file: string, signal?: AbortSignal): Promise<{ bytes: number; sha256: string }>
  /** Reads all of a small object. @throws {ObjectMissing} */
  getBytes(key: string, signal?: AbortSignal): Promise<Buffer>
  head(key: string, signal?: AbortSignal): Promise<StoredObject | undefined>
  /** Objects whose keys start with the prefix, in order of their keys. */
  list(prefix: string, signal?: AbortSignal): AsyncIterable<StoredObject>
  /** Deletes an object. It is no error if the object does not exist. */
  delete(key: string, signal?: AbortSignal): Promise<void>
}

/** An S3 store at another address. `profile` names its credentials in the AWS files; without it, the current ones are used. */
export interface OlderStore {
  endpoint: string
  profile?: string | undefined
}

/** What the rules of a bucket demand of each object that is written there. */
export interface BucketRules {
  /** ARCHIVE_SSE. Without it, the bucket's default applies. */
  encryption?: (typeof ENCRYPTIONS)[number] | undefined
  /** ARCHIVE_SSE_KMS_KEY_ID */
  kmsKey?: string | undefined
  /** ARCHIVE_CHECKSUM. The default is sha256 for AWS, and none for other stores: some refuse headers that they do not know. */
  checksum?: (typeof CHECKSUMS)[number] | undefined
}

export interface StoreOptions {
  s3Endpoint?: string | undefined
  /** By bucket: where the archives are that were made before the store was changed. */
  olderStores?: Map<string, OlderStore> | undefined
  /** For the store in use. Older ones get only revisions without erased devices, by the bucket's own defaults. */
  bucketRules?: BucketRules | undefined
  signing?: Signing | undefined
}
