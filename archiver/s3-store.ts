import { createHash } from 'node:crypto'
import { createReadStream, createWriteStream } from 'node:fs'
import { stat } from 'node:fs/promises'
import { Transform, type Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import {
  DeleteObjectCommand, GetObjectCommand, HeadBucketCommand, HeadObjectCommand, ListObjectsV2Command,
  PutObjectCommand, S3Client,
} from '@aws-sdk/client-s3'
import { ObjectMissing } from './object-missing.ts'
import type { Store } from './store.ts'

/** The most that one PUT may carry: https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html */
const MAX_PUT_BYTES = 5 * 1024 ** 3
const PUT_TRIES = 4

/** A bucket, or a prefix in one, as a store. Credentials and region come from where the AWS SDK looks. */
export function createS3Store(url: string, options: { s3Endpoint?: string | undefined }): Store {
  const { hostname: Bucket, pathname } = new URL(url)
  const prefix = decodeURIComponent(pathname).replace(/^\/+|\/+$/g, '')
  const Key = (key: string) => prefix === '' ? key : `${prefix}/${key}`
  const urlOf = (key: string) => `${url}/${key}`
  const place = `${Bucket} at ${options.s3Endpoint ?? 'AWS'}`

  let client: S3Client | undefined
  const s3 = () => client ??= new S3Client({
    ...(options.s3Endpoint ? { endpoint: options.s3Endpoint, forcePathStyle: true } : {}),
    // The SDK's default appends CRC32 trailers, which older stores refuse or store as part of the object.
    requestChecksumCalculation: 'WHEN_REQUIRED',
    responseChecksumValidation: 'WHEN_REQUIRED',
    maxAttempts: 4,
    // Its warnings are of tries that are repeated here; what fails in the end is thrown.
    logger: { debug() {}, info() {}, warn() {}, error() {} },
  })

  async function put(key: string, body: () => Readable | Uint8Array, bytes: number, sha256: string, signal?: AbortSignal) {
    if (bytes > MAX_PUT_BYTES) {
      throw new Error(`${urlOf(key)}: ${bytes} bytes are more than the ${MAX_PUT_BYTES} that one PUT may carry; nothing was stored`)
    }
    for (let tried = 1; ; tried++) {
      // A stream cannot be sent twice, so the SDK does not retry it: each try gets a new one here.
      const command = new PutObjectCommand({
        Bucket, Key: Key(key), Body: body(), ContentLength: bytes,
        ChecksumAlgorithm: 'SHA256', ChecksumSHA256: Buffer.from(sha256, 'hex').toString('base64'),
      })
      // The signature then covers the body, so a store that knows nothing of checksums refuses a changed one too.
      command.middlewareStack.add(next => args => {
        const { headers } = args.request as { headers: Record<string, string> }
        headers['x-amz-content-sha256'] = sha256
        return next(args)
      }, { step: 'build', name: 'signedBody' })
      try {
        await s3().send(command, { abortSignal: signal })
        return
      } catch (cause) {
        signal?.throwIfAborted()
        if (tried === PUT_TRIES || !isTransient(cause)) throw explain(cause, `${urlOf(key)}: could not be stored`)
        await sleep(250 * 2 ** tried, undefined, { signal })
      }
    }
  }

  async function get(key: string, signal?: AbortSignal) {
    try {
      const { Body } = await s3().send(new GetObjectCommand({ Bucket, Key: Key(key) }), { abortSignal: signal })
      return Body as Readable
    } catch (cause) {
      signal?.throwIfAborted()
      if (nameOf(cause) === 'NoSuchKey') throw new ObjectMissing(urlOf(key), cause)
      throw explain(cause, `${urlOf(key)}: could not be read`)
    }
  }

  function explain(cause: unknown, what: string) {
    const why = {
      NoSuchBucket: `there is no bucket ${place}; create it, or correct ARCHIVE_URL`,
      InvalidAccessKeyId: `the store does not know the access key; correct AWS_ACCESS_KEY_ID`,
      SignatureDoesNotMatch: `the store refuses the secret; correct AWS_SECRET_ACCESS_KEY`,
      CredentialsProviderError: `no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY`,
      AccessDenied: `these credentials may not do this in bucket ${place}`,
      Forbidden: `these credentials are wrong, or may not use bucket ${place}`,
      403: `these credentials are wrong, or may not use bucket ${place}`,
      NotFound: `there is no bucket ${place}; create it, or correct ARCHIVE_URL`,
      QuotaExceeded: `the store's quota is used up`,
      ECONNREFUSED: `nothing answers at ${options.s3Endpoint ?? 'AWS'}; correct AWS_ENDPOINT_URL_S3, or start the store`,
      ENOTFOUND: `the host of ${options.s3Endpoint ?? 'AWS'} is not known; correct AWS_ENDPOINT_URL_S3`,
    }[nameOf(cause)]
    const region = cause instanceof Error && /region is missing/i.test(cause.message) ? 'no region is set; set AWS_REGION' : undefined
    return new Error([what, why ?? region].filter(Boolean).join(': '), { cause })
  }

  return {
    url,
    async check(signal) {
      try {
        await s3().send(new HeadBucketCommand({ Bucket }), { abortSignal: signal })
      } catch (cause) {
        signal?.throwIfAborted()
        throw explain(cause, `${url}: the store cannot be used`)
      }
    },
    async put(key, file, sha256, signal) {
      const { size } = await stat(file)
      await put(key, () => createReadStream(file, { highWaterMark: 1 << 20 }), size, sha256, signal)
    },
    async putBytes(key, bytes, signal) {
      await put(key, () => bytes, bytes.length, createHash('sha256').update(bytes).digest('hex'), signal)
    },
    async getToFile(key, file, signal) {
      const body = await get(key, signal)
      const hash = createHash('sha256')
      let bytes = 0
      const count = new Transform({
        transform(chunk: Buffer, _encoding, done) {
          hash.update(chunk)
          bytes += chunk.length
          done(null, chunk)
        },
      })
      try {
        await pipeline(body, count, createWriteStream(file, { flags: 'wx' }), { signal })
      } catch (cause) {
        signal?.throwIfAborted()
        throw new Error(`${urlOf(key)}: reading stopped after ${bytes} bytes`, { cause })
      }
      return { bytes, sha256: hash.digest('hex') }
    },
    async getBytes(key, signal) {
      const chunks: Buffer[] = []
      for await (const chunk of await get(key, signal)) chunks.push(chunk as Buffer)
      return Buffer.concat(chunks)
    },
    async head(key, signal) {
      try {
        const { ContentLength } = await s3().send(new HeadObjectCommand({ Bucket, Key: Key(key) }), { abortSignal: signal })
        return { key, bytes: ContentLength ?? 0 }
      } catch (cause) {
        signal?.throwIfAborted()
        // A HEAD has no body to say whether the key or the bucket is missing; check() tells the bucket.
        if (nameOf(cause) === 'NotFound' || nameOf(cause) === 'NoSuchKey') return undefined
        throw explain(cause, `${urlOf(key)}: could not be read`)
      }
    },
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

/** S3 names its errors; the network's have a code; some answers have only a status. */
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
  const status = statusOf(error)
  return status === undefined ? nameOf(error) !== 'CredentialsProviderError' : status >= 500 || status === 429 || status === 408
}
