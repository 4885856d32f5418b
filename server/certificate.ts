import { createPrivateKey, X509Certificate } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import type { Server } from 'node:https'
import { createSecureContext } from 'node:tls'
import type { Log } from '../lib/log.ts'

/** How often the files are read. A change counts if two reads in a row saw the same. */
const EVERY_MS = 15_000

/** Where the certificate, with its chain, and its key are. */
export interface CertificateFiles {
  cert: string
  key: string
}

/** The texts of the files, which fit each other. */
export interface Pair {
  cert: string
  key: string
  /** When the first of the certificates expires: of the chain, which may be longer than one. */
  expires: Date
}

/**
 * Reads the files of TLS_CERT and TLS_KEY.
 * @throws Error that says which of the two is wrong, without anything of the key
 */
export function readPair(files: CertificateFiles): Pair {
  const read = (name: 'cert' | 'key') => {
    try {
      return readFileSync(files[name], 'utf8')
    } catch (error) {
      throw unreadable(files, name, error)
    }
  }
  return pairOf(files, { cert: read('cert'), key: read('key') })
}

function unreadable(files: CertificateFiles, name: 'cert' | 'key', error: unknown) {
  return new Error(`${variable(name)} ${files[name]} cannot be read: ${(error as Error).message}.`)
}

function variable(name: 'cert' | 'key') {
  return name === 'cert' ? 'TLS_CERT' : 'TLS_KEY'
}

const CERTIFICATE = /-----BEGIN CERTIFICATE-----[\s\S]*?-----END CERTIFICATE-----/g

function pairOf(files: CertificateFiles, { cert, key }: { cert: string; key: string }): Pair {
  const chain = chainOf(cert)
  const [own] = chain
  if (own === undefined) throw new Error(`TLS_CERT ${files.cert} is not a certificate in PEM, with its chain.`)
  let privateKey
  try {
    privateKey = createPrivateKey(key)
  } catch {
    // Not the cause: nothing of the file may reach a log.
  }
  if (privateKey === undefined) throw new Error(`TLS_KEY ${files.key} is not a private key in PEM without a passphrase.`)
  if (!own.checkPrivateKey(privateKey))
    throw new Error(`TLS_KEY ${files.key} is not the key of the certificate in TLS_CERT ${files.cert}.`)
  try {
    createSecureContext({ cert, key })
  } catch (error) {
    throw new Error(`TLS_CERT ${files.cert} and its key cannot be used for TLS: ${(error as Error).message}.`, { cause: error })
  }
  return { cert, key, expires: new Date(Math.min(...chain.map(({ validTo }) => Date.parse(validTo)))) }
}

/** The certificates in a PEM text; none if anything in it is not whole. */
function chainOf(text: string): X509Certificate[] {
  try {
    const chain = (text.match(CERTIFICATE) ?? []).map(each => new X509Certificate(each))
    // Refuses, too, what is after the certificates, such as half of another one.
    createSecureContext({ cert: text })
    return chain
  } catch {
    return []
  }
}

/**
 * The certificate of this process's HTTPS server. It follows its files, because a certificate is renewed every few weeks, and a
 * restart would cut connections. While the files do not fit each other, the last good pair stays.
 */
export class Certificate {
  #pair: Pair
  /** What the last read saw, and what was decided upon last. */
  #seen: string
  #judged: string
  #server: Server | undefined
  #timer: NodeJS.Timeout | undefined

  /** @param pair what readPair() read from these files */
  constructor(
    readonly files: CertificateFiles,
    pair: Pair,
    readonly log: Log,
  ) {
    this.#pair = pair
    this.#seen = this.#judged = textOf(pair)
    if (pair.expires.getTime() < Date.now())
      log.warn({ event: 'tls.expired', expires: pair.expires }, 'The certificate in TLS_CERT has expired, so clients refuse it.')
  }

  get expires() {
    return this.#pair.expires
  }

  /** For https.createServer() and setSecureContext(). */
  get options() {
    const { cert, key } = this.#pair
    return { cert, key, minVersion: 'TLSv1.2' } as const
  }

  /** Gives each new pair to the server. Connections that are open stay. */
  follow(server: Server) {
    this.#server = server
    this.#timer = setInterval(() => void this.check(), EVERY_MS)
    this.#timer.unref()
  }

  end() {
    clearInterval(this.#timer)
  }

  /** Reads the files once. */
  async check() {
    const read = await this.#read()
    const seen = read instanceof Error ? read.message : textOf(read)
    // Whoever renews them may be between two writes.
    const isSettled = seen === this.#seen
    this.#seen = seen
    if (!isSettled || seen === this.#judged) return
    this.#judged = seen
    try {
      if (read instanceof Error) throw read
      this.#pair = pairOf(this.files, read)
      this.#server?.setSecureContext(this.options)
      this.log.info({ event: 'tls.renewed', expires: this.expires }, 'New connections get the renewed certificate.')
    } catch (error) {
      this.log.warn(
        { event: 'tls.not_renewed', error, expires: this.expires },
        'The files of TLS_CERT and TLS_KEY have changed but cannot be used. The certificate from before stays.',
      )
    }
  }

  async #read() {
    try {
      const read = async (name: 'cert' | 'key') =>
        readFile(this.files[name], 'utf8').catch((error: unknown) => {
          throw unreadable(this.files, name, error)
        })
      return { cert: await read('cert'), key: await read('key') }
    } catch (error) {
      return error as Error
    }
  }
}

function textOf({ cert, key }: { cert: string; key: string }) {
  return `${cert}\n${key}`
}
