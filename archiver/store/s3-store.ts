import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { open, rm, stat } from 'node:fs/promises'
import { Transform, type Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import {
  AbortMultipartUploadCommand,
  CompleteMultipartUploadCommand,
  CreateMultipartUploadCommand,
  DeleteObjectCommand,
  GetObjectCommand,
  HeadObjectCommand,
  ListMultipartUploadsCommand,
  ListObjectsV2Command,
  PutObjectCommand,
  S3Client,
  UploadPartCommand,
  type CompletedPart,
} from '@aws-sdk/client-s3'
import { ObjectMissing } from './object-missing.ts'
import type { BucketRules, Store } from './store.ts'

/**
 * A larger file is uploaded in parts. Each part is sent, checked and retried separately. A store accepts at most 10,000 parts,
 * and none under 5 MiB except the last: https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
 */
const PART_BYTES = 64 * 2 ** 20
const MAX_PARTS = 10_000
const TRIES = 4

export interface S3Options extends BucketRules {
  /** The address of a store that is not AWS. */
  endpoint?: string | undefined
  /** A profile of the AWS files, for credentials and region. Without one, they come from where the AWS SDK looks. */
  profile?: string | undefined
}

/** A bucket, or a prefix in one, as a store. */
export function createS3Store(url: string, options: S3Options): Store {
  const { endpoint, profile, encryption, kmsKey, checksum = endpoint === undefined ? 'sha256' : 'none' } = options
  const { hostname: Bucket, pathname } = new URL(url)
  const prefix = decodeURIComponent(pathname).replace(/^\/+|\/+$/g, '')
  const Key = (key: string) => (prefix === '' ? key : `${prefix}/${key}`)
  const urlOf = (key: string) => `${url}/${key}`
  // Not for the parts of an upload: it has the encryption that it was started with.
  const encrypted = { ServerSideEncryption: encryption, SSEKMSKeyId: kmsKey }
  const place = `${Bucket} at ${endpoint ?? 'AWS'}`

  let client: S3Client | undefined
  function s3() {
    if (client) return client
    client = new S3Client({
      ...(endpoint ? { endpoint, forcePathStyle: true } : {}),
      ...(profile ? { profile } : {}),
      // The SDK's default appends CRC32 trailers, which older stores refuse or store as part of the object.
      requestChecksumCalculation: 'WHEN_REQUIRED',
      responseChecksumValidation: 'WHEN_REQUIRED',
      maxAttempts: TRIES,
      // Its warnings are about attempts that are retried here. What fails in the end is thrown.
      logger: { debug() {}, info() {}, warn() {}, error() {} },
    })
    // The signature covers the body, so a store that does not support checksums refuses a changed body too.
    client.middlewareStack.add(
      next => args => {
        const { ChecksumSHA256 } = args.input as { ChecksumSHA256?: string }
        const { headers } = args.request as { headers: Record<string, string> }
        if (ChecksumSHA256) headers['x-amz-content-sha256'] = Buffer.from(ChecksumSHA256, 'base64').toString('hex')
        if (checksum !== 'sha256') {
          for (const name of ['x-amz-checksum-sha256', 'x-amz-checksum-algorithm', 'x-amz-sdk-checksum-algorithm'])
            delete headers[name]
        }
        return next(args)
      },
      { step: 'build', priority: 'low', name: 'signedBody' },
    )
    return client
  }

  /** The SDK does not retry requests with streams: a body cannot be sent twice, and a download may break off. */
  async function retry<T>(what: string, run: () => Promise<T>, signal?: AbortSignal, explainFault = explain) {
    for (let tried = 1; ; tried++) {
      try {
        return await run()
      } catch (cause) {
        signal?.throwIfAborted()
        if (tried === TRIES || !isTransient(cause)) throw explainFault(cause, what)
        await sleep(250 * 2 ** tried, undefined, { signal })
      }
    }
  }

  /** `md5` is in base64. */
  function sums(sha256: string, md5: string | undefined) {
    return {
      ChecksumAlgorithm: 'SHA256' as const,
      ChecksumSHA256: Buffer.from(sha256, 'hex').toString('base64'),
      ...(md5 === undefined ? {} : { ContentMD5: md5 }),
    }
  }

  async function put(key: string, body: () => Readable | Uint8Array, bytes: number, sha256: string, signal?: AbortSignal) {
    const md5 = checksum === 'md5' ? await md5Of(body()) : undefined
    const object = { Bucket, Key: Key(key), ContentLength: bytes, ...encrypted, ...sums(sha256, md5) }
    await retry(
      `${urlOf(key)}: could not be stored`,
      () => s3().send(new PutObjectCommand({ ...object, Body: body() }), { abortSignal: signal }),
      signal,
      explainPut,
    )
  }

  // Not @aws-sdk/lib-storage: it holds several parts in memory, sends bodies unsigned over https, uses the checksum trailers
  // that old stores refuse, and does not remove what a killed process left behind.
  async function putParts(key: string, file: string, bytes: number, sha256: string, signal?: AbortSignal) {
    const what = `${urlOf(key)}: could not be stored`
    await abortUploads(key, signal)
    const { UploadId } = await s3()
      .send(new CreateMultipartUploadCommand({ Bucket, Key: Key(key), ChecksumAlgorithm: 'SHA256', ...encrypted }), {
        abortSignal: signal,
      })
      .catch((cause: unknown) => {
        signal?.throwIfAborted()
        throw explainPut(cause, what)
      })
    try {
      const size = partBytes(bytes)
      const whole = createHash('sha256')
      const Parts: CompletedPart[] = []
      for (let start = 0; start < bytes; start += size) {
        const range = { start, end: Math.min(start + size, bytes) - 1, highWaterMark: 1 << 20 }
        const part = createHash('sha256')
        const md5 = checksum === 'md5' ? createHash('md5') : undefined
        for await (const chunk of createReadStream(file, { ...range, signal })) {
          part.update(chunk as Buffer)
          md5?.update(chunk as Buffer)
          whole.update(chunk as Buffer)
        }
        const PartNumber = Parts.length + 1
        const ContentLength = range.end - start + 1
        const partSums = sums(part.digest('hex'), md5?.digest('base64'))
        const { ETag } = await retry(
          `${what}, at part ${PartNumber}`,
          () =>
            s3().send(
              new UploadPartCommand({
                Bucket,
                Key: Key(key),
                UploadId,
                PartNumber,
                Body: createReadStream(file, range),
                ContentLength,
                ...partSums,
              }),
              { abortSignal: signal },
            ),
          signal,
          explainPut,
        )
        Parts.push({ PartNumber, ETag, ...(checksum === 'sha256' ? { ChecksumSHA256: partSums.ChecksumSHA256 } : {}) })
      }
      const got = whole.digest('hex')
      if (got !== sha256) throw new Error(`${file} has sha256 ${got}, expected ${sha256}; nothing was stored`)
      try {
        await s3().send(new CompleteMultipartUploadCommand({ Bucket, Key: Key(key), UploadId, MultipartUpload: { Parts } }), {
          abortSignal: signal,
        })
      } catch (cause) {
        // The answer to a first attempt was lost: the upload is gone because the object exists. (The proof reads it back.)
        if (nameOf(cause) !== 'NoSuchUpload' || (await head(key, signal))?.bytes !== bytes) throw explainPut(cause, what)
      }
    } catch (error) {
      // Without the signal, so also when the archiver is told to stop. What cannot be removed now goes before the next upload.
      await s3()
        .send(new AbortMultipartUploadCommand({ Bucket, Key: Key(key), UploadId }))
        .catch(() => {})
      throw error
    } finally {
      // Removes an upload whose id was lost with the answer, before the SDK started another one.
      await abortUploads(key).catch(() => {})
    }
  }

  /** Removes the parts that killed archivers left for a key. The caller holds its lease, so nobody else is uploading it. */
  async function abortUploads(key: string, signal?: AbortSignal) {
    try {
      for (let markers = {}; ;) {
        const page = await s3().send(new ListMultipartUploadsCommand({ Bucket, Prefix: Key(key), ...markers }), {
          abortSignal: signal,
        })
        for (const { Key: found, UploadId } of page.Uploads ?? []) {
          if (found !== Key(key)) continue
          await s3().send(new AbortMultipartUploadCommand({ Bucket, Key: found, UploadId }), { abortSignal: signal })
        }
        if (!page.IsTruncated) return
        markers = { KeyMarker: page.NextKeyMarker, UploadIdMarker: page.NextUploadIdMarker }
      }
    } catch (cause) {
      signal?.throwIfAborted()
      // The credentials may only store, or the store cannot list. Then the owner of the store has to expire the remains.
      if (['AccessDenied', 'NotImplemented', 'NoSuchUpload'].includes(nameOf(cause))) return
      throw explain(cause, `${urlOf(key)}: the unfinished uploads of earlier attempts could not be removed`)
    }
  }

  async function head(key: string, signal?: AbortSignal) {
    try {
      const { ContentLength } = await s3().send(new HeadObjectCommand({ Bucket, Key: Key(key) }), { abortSignal: signal })
      return { key, bytes: ContentLength ?? 0 }
    } catch (cause) {
      signal?.throwIfAborted()
      // The answer to HEAD has no body that says whether the key or the bucket is missing. check() finds a missing bucket.
      if (nameOf(cause) === 'NotFound' || nameOf(cause) === 'NoSuchKey') return undefined
      throw explain(cause, `${urlOf(key)}: could not be read`)
    }
  }

  async function get<T>(key: string, read: (body: Readable) => Promise<T>, signal?: AbortSignal) {
    try {
      return await retry(
        `${urlOf(key)}: could not be read`,
        async () => {
          const { Body } = await s3().send(new GetObjectCommand({ Bucket, Key: Key(key) }), { abortSignal: signal })
          const body = Body as Readable
          return await read(body).finally(() => body.destroy())
        },
        signal,
      )
    } catch (error) {
      if (error instanceof Error && nameOf(error.cause) === 'NoSuchKey') throw new ObjectMissing(urlOf(key), error.cause)
      throw error
    }
  }

  function explain(cause: unknown, what: string) {
    const why =
      ruleOf(cause) ??
      {
        NoSuchBucket: `there is no bucket ${place}; create it, or correct ARCHIVE_URL`,
        InvalidAccessKeyId: `the store does not know the access key; correct AWS_ACCESS_KEY_ID`,
        SignatureDoesNotMatch: `the store refuses the secret key; correct AWS_SECRET_ACCESS_KEY`,
        CredentialsProviderError: `no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY`,
        AccessDenied: `these credentials may not do this in bucket ${place}`,
        Forbidden: `these credentials are wrong, or may not use bucket ${place}`,
        403: `these credentials are wrong, or may not use bucket ${place}`,
        NotFound: `there is no bucket ${place}; create it, or correct ARCHIVE_URL`,
        QuotaExceeded: `the quota of bucket ${place}, or of its user, is used up; raise it, or free space`,
        XMinioStorageFull: `the disks of the store are full; free space there`,
        XAmzContentSHA256Mismatch: `what arrived at the store is not what was sent; it was changed on the way`,
        BadDigest: `what arrived at the store is not what was sent; it was changed on the way`,
        ECONNREFUSED: `nothing answers at ${endpoint ?? 'AWS'}; correct AWS_ENDPOINT_URL_S3, or start the store`,
        ENOTFOUND: `the host of ${endpoint ?? 'AWS'} is not known; correct AWS_ENDPOINT_URL_S3`,
      }[nameOf(cause)]
    const region =
      cause instanceof Error && /region is missing/i.test(cause.message) ? 'no region is set; set AWS_REGION' : undefined
    return new Error([what, why ?? region].filter(Boolean).join(': '), { cause })
  }

  /** Like explain, for a request that stores: only those have to satisfy the rules of a bucket. */
  function explainPut(cause: unknown, what: string) {
    if (nameOf(cause) !== 'AccessDenied' || ruleOf(cause) !== undefined) return explain(cause, what)
    return new Error(
      `${what}: these credentials may not do this in bucket ${place}, or its policy demands an encryption: set ARCHIVE_SSE and ` +
        'ARCHIVE_SSE_KMS_KEY_ID as the policy says',
      { cause },
    )
  }

  /** Explains the error of a rule of the bucket that ARCHIVE_SSE… or ARCHIVE_CHECKSUM satisfies. */
  function ruleOf(cause: unknown) {
    const name = nameOf(cause)
    const said = cause instanceof Error ? cause.message : ''
    if (name.startsWith('KMS') || /\bkms:|\bkms[ -]key-?id|\bkms managed key/i.test(said)) {
      return (
        'the store cannot use the KMS key; set ARCHIVE_SSE_KMS_KEY_ID to a key that the store has, and let these credentials ' +
        'use it (kms:GenerateDataKey, kms:Decrypt)'
      )
    }
    if (name === 'MissingContentMD5' || (name === 'InvalidRequest' && /content-md5|checksum/i.test(said))) {
      return `bucket ${place} demands a checksum of each object, as those with Object Lock do; set ARCHIVE_CHECKSUM to sha256 or md5`
    }
    return undefined
  }

  return {
    url,
    async check(signal) {
      try {
        // Not HeadBucket: the answer to HEAD has no body that says what is wrong.
        await s3().send(new ListObjectsV2Command({ Bucket, Prefix: Key(''), MaxKeys: 1 }), { abortSignal: signal })
      } catch (cause) {
        signal?.throwIfAborted()
        throw explain(cause, `${url}: the store cannot be used`)
      }
    },
    async put(key, file, sha256, signal) {
      const { size } = await stat(file)
      if (size > PART_BYTES) await putParts(key, file, size, sha256, signal)
      else await put(key, () => createReadStream(file, { highWaterMark: 1 << 20 }), size, sha256, signal)
    },
    async putBytes(key, bytes, signal) {
      await put(key, () => bytes, bytes.length, createHash('sha256').update(bytes).digest('hex'), signal)
    },
    async getToFile(key, file, signal) {
      return await get(
        key,
        async body => {
          const hash = createHash('sha256')
          let bytes = 0
          const count = new Transform({
            transform(chunk: Buffer, _encoding, done) {
              hash.update(chunk)
              bytes += chunk.length
              done(null, chunk)
            },
          })
          const handle = await open(file, 'wx')
          try {
            await pipeline(body, count, handle.createWriteStream(), { signal })
          } catch (error) {
            await rm(file, { force: true })
            throw error
          }
          return { bytes, sha256: hash.digest('hex') }
        },
        signal,
      )
    },
    async getBytes(key, signal) {
      return await get(
        key,
        async body => {
          const chunks: Buffer[] = []
          for await (const chunk of body) chunks.push(chunk as Buffer)
          return Buffer.concat(chunks)
        },
        signal,
      )
    },
    head,
    async *list(wanted, signal) {
      let ContinuationToken: string | undefined
      do {
        const page = await s3()
          .send(new ListObjectsV2Command({ Bucket, Prefix: Key(wanted), ContinuationToken }), { abortSignal: signal })
          .catch((cause: unknown) => {
            throw explain(cause, `${url}: could not be listed`)
          })
        for (const { Key: found, Size } of page.Contents ?? []) {
          if (found !== undefined) yield { key: prefix === '' ? found : found.slice(prefix.length + 1), bytes: Size ?? 0 }
        }
        ContinuationToken = page.NextContinuationToken
      } while (ContinuationToken !== undefined)
    },
    async delete(key, signal) {
      try {
        await s3().send(new DeleteObjectCommand({ Bucket, Key: Key(key) }), { abortSignal: signal })
      } catch (cause) {
        signal?.throwIfAborted()
        throw explain(cause, `${urlOf(key)}: could not be deleted`)
      }
    },
  }
}

/** The size of each part except the last. A file of more than 10,000 times 64 MiB is uploaded in larger parts. */
export function partBytes(bytes: number) {
  return Math.max(PART_BYTES, Math.ceil(bytes / MAX_PARTS))
}

async function md5Of(body: Readable | Uint8Array) {
  const hash = createHash('md5')
  if (body instanceof Uint8Array) hash.update(body)
  else for await (const chunk of body) hash.update(chunk as Buffer)
  return hash.digest('base64')
}

/** S3 errors have a name, network errors have a code, and some answers have only a status. */
function nameOf(error: unknown): string {
  if (!(error instanceof Error)) return ''
  if ('code' in error && typeof error.code === 'string') return error.code
  if (error.name !== 'Error' && error.name !== 'UnknownError' && error.name !== 'Unknown') return error.name
  return String(statusOf(error) ?? '')
}

function statusOf(error: unknown) {
  return (error as { $metadata?: { httpStatusCode?: number } }).$metadata?.httpStatusCode
}

function isTransient(error: unknown) {
  const name = nameOf(error)
  // The 4xx errors that mean that the body arrived late, incomplete or changed.
  if (['RequestTimeout', 'XAmzContentSHA256Mismatch', 'BadDigest', 'IncompleteBody'].includes(name)) return true
  // Faults of this machine's files and settings.
  if (['ENOSPC', 'EDQUOT', 'EROFS', 'EACCES', 'ENOENT', 'EEXIST', 'EMFILE', 'CredentialsProviderError'].includes(name))
    return false
  const status = statusOf(error)
  // Without a status, network errors have a code or a name. Faults in settings or in this code have none.
  return status === undefined ? name !== '' : status >= 500 || status === 429 || status === 408
}
