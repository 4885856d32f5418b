import { createHash, createPrivateKey, createPublicKey, sign, verify, type KeyObject } from 'node:crypto'

/** A public key that manifests may be signed with. `id`: the hex SHA-256 of its SPKI DER. */
export interface PublicKey {
  id: string
  /** As openssl writes and reads it. */
  pem: string
  key: KeyObject
}

/** The archiver's own key. */
export interface Signer extends PublicKey {
  privateKey: KeyObject
}

/** The key that manifests are signed with, and those whose signatures count, by id: earlier ones in their order, then this one. */
export interface Signing {
  signer?: Signer | undefined
  trusted: ReadonlyMap<string, PublicKey>
}

/** The last member of a manifest. */
export interface Signature {
  /** The id of the key. */
  key: string
  /** In base64, over the text of the file without this member. */
  ed25519: string
}

/** SHA-256 of the bytes of a manifest, in hex. The next day names its predecessor by it. */
export function manifestHash(bytes: Uint8Array) {
  return createHash('sha256').update(bytes).digest('hex')
}

/** The text of a manifest, signed if there is a key: exactly what `jq 'del(.signature)'` prints, and the signature as last member. */
export function manifestText(manifest: object, signer: Signer | undefined) {
  const text = jqText(manifest)
  if (!signer) return text
  const ed25519 = sign(null, Buffer.from(text), signer.privateKey).toString('base64')
  return jqText({ ...manifest, signature: { key: signer.id, ed25519 } satisfies Signature })
}

/** A copy without these members; the others stay in their order. */
export function without<T extends object, K extends string>(object: T, ...names: K[]) {
  return Object.fromEntries(Object.entries(object).filter(([name]) => !names.includes(name as K))) as Omit<T, K>
}

function jqText(value: object) {
  return `${JSON.stringify(value, null, 2)}\n`
}

/**
 * Checks the signature of a manifest. Without a trusted key, and for a manifest without a signature, there is nothing to check.
 * @throws an error with a sentence if the key is unknown, or the manifest is not what was signed
 */
export function checkSignature(url: string, bytes: Uint8Array, signature: Signature | undefined, signing: Signing | undefined) {
  if (!signature || !signing || signing.trusted.size === 0) return
  const trusted = signing.trusted.get(signature.key)
  if (!trusted) {
    throw new Error(
      `${url}: the manifest is signed by the unknown key ${signature.key}; if you know whose it is, add its public key to ` +
        'ARCHIVE_TRUSTED_KEYS_FILE',
    )
  }
  const text = Buffer.from(bytes).toString('utf8')
  const rest = without(JSON.parse(text) as { signature: Signature }, 'signature')
  // The text, too, so that no reader can see another manifest in it than the one that was signed.
  const isWhole = text === jqText({ ...rest, signature })
  if (!isWhole || !verify(null, Buffer.from(jqText(rest)), trusted.key, Buffer.from(signature.ed25519, 'base64'))) {
    throw new Error(
      `${url}: the signature is wrong: the manifest is not what the key ${shortId(signature.key)} signed, so it was changed since`,
    )
  }
}

/** What people see of the id of a key. */
export function shortId(id: string) {
  return id.slice(0, 16)
}

const BLOCK = /-----BEGIN ([A-Z0-9 ]+)-----[\s\S]*?-----END \1-----/g

/** Reads the private key of ARCHIVE_SIGNING_KEY_FILE. @throws an error that does not contain it */
export function readSigner(pem: string): Signer {
  let privateKey
  try {
    privateKey = createPrivateKey(pem)
  } catch {
    // Not the cause: nothing of the file may reach a log.
  }
  if (privateKey?.asymmetricKeyType !== 'ed25519')
    throw new Error(
      'expected an Ed25519 private key in PEM without a passphrase, as openssl genpkey -algorithm ed25519 writes it',
    )
  return { privateKey, ...publicKey(createPublicKey(privateKey)) }
}

/** Reads the public keys of ARCHIVE_TRUSTED_KEYS_FILE; other text around them is ignored. @throws if it has anything else in PEM */
export function readPublicKeys(pem: string): PublicKey[] {
  const blocks = [...pem.matchAll(BLOCK)]
  if (blocks.length === 0) throw new Error('expected public keys in PEM, as npm run archive -- key prints them; it has none')
  return blocks.map(([block, label], n) => {
    if (label !== 'PUBLIC KEY') throw new Error(`expected public keys in PEM; block ${n + 1} is a ${label}`)
    let key
    try {
      key = createPublicKey(block)
    } catch {
      // Told below.
    }
    if (key?.asymmetricKeyType !== 'ed25519') throw new Error(`expected Ed25519 public keys in PEM; block ${n + 1} is none`)
    return publicKey(key)
  })
}

function publicKey(key: KeyObject): PublicKey {
  const id = createHash('sha256')
    .update(key.export({ type: 'spki', format: 'der' }))
    .digest('hex')
  return { id, key, pem: key.export({ type: 'spki', format: 'pem' }).toString() }
}

/** @param earlier the keys of ARCHIVE_TRUSTED_KEYS_FILE, in their order */
export function makeSigning(signer: Signer | undefined, earlier: PublicKey[] = []): Signing {
  const trusted = signer ? [...earlier.filter(({ id }) => id !== signer.id), signer] : earlier
  return { signer, trusted: new Map(trusted.map(({ id, pem, key }) => [id, { id, pem, key }])) }
}
