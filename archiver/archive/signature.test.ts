import { execFile } from 'node:child_process'
import { generateKeyPairSync } from 'node:crypto'
import { cp, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { promisify } from 'node:util'
import t, { type Test } from 'tap'
import { plainEnv } from '../../local/config.ts'
import { repository } from '../../lib/repository.ts'
import { withDatabase, withPlainDatabase, type TestDatabase } from '../../testing/database.ts'
import { enroll } from '../../testing/fleet.ts'
import { shellTools } from '../../testing/shell-tools.ts'
import {
  daysAgo,
  fillDay,
  killAfter,
  makeDirectory,
  partitionOf,
  pathsOf,
  runCliWith,
  stateOf,
  workAll,
} from '../../testing/archiver.ts'
import type { Manifest } from './manifest.ts'
import { makeSigning, manifestHash, manifestText, readPublicKeys, readSigner, without, type Signer } from './signature.ts'

const run = promisify(execFile)

/** A key, its files as openssl writes them, and the settings of an archiver that has it. */
async function withKey(t: Test) {
  const directory = await makeDirectory(t)
  const { privateKey } = generateKeyPairSync('ed25519')
  const pem = privateKey.export({ type: 'pkcs8', format: 'pem' }).toString()
  const file = join(directory, 'key.pem')
  await writeFile(file, pem, { mode: 0o600 })
  const signer = readSigner(pem)
  return { signer, file, env: { ARCHIVE_SIGNING_KEY_FILE: file } }
}

interface Chain {
  db: TestDatabase
  directory: string
  days: string[]
}

/** A database with days that are archived one after the other, each by the key at its place, or by none. */
async function withChain(t: Test, signers: (Signer | undefined)[]): Promise<Chain> {
  const db = await withDatabase(t)
  const directory = await makeDirectory(t)
  const days = signers.map((_, n) => daysAgo(80 - n))
  for (const [n, signer] of signers.entries()) await archiveDay(t, { db, directory, days }, days[n]!, signer)
  return { db, directory, days }
}

async function archiveDay(t: Test, { db, directory }: Chain, day: string, signer: Signer | undefined) {
  await fillDay(db.admin, day, 200)
  await db.sql`select fleet.archive_partition(${await partitionOf(db.sql, day)})`
  t.same((await workAll(t, db, directory, { signing: makeSigning(signer) })).results, ['done'])
}

/** Brings a day back, adds a row, and archives it again. */
async function archiveAgain(t: Test, { db, directory }: Chain, day: string, signer: Signer | undefined, device = 4711) {
  const signing = makeSigning(signer)
  const partition = await partitionOf(db.sql, day)
  await db.sql`select fleet.request_restore(${day}::date)`
  t.same((await workAll(t, db, directory, { signing })).results, ['done'])
  await db.sql`select fleet.unsettle_partition(${partition})`
  await db.admin.unsafe(
    `insert into fleet.${partition} (ts, received_at, device_id) values ('${day} 12:34:56Z', now(), ${device})`,
  )
  await db.sql`select fleet.release_partition(${partition})`
  await db.sql`select fleet.archive_partition(${partition})`
  t.same((await workAll(t, db, directory, { signing })).results, ['done'])
}

async function manifestOf({ directory }: Pick<Chain, 'directory'>, day: string) {
  const text = await readFile(pathsOf(directory, day).manifest, 'utf8')
  return { text, sha256: manifestHash(Buffer.from(text)), manifest: JSON.parse(text) as Manifest }
}

async function verify(t: Test, { db, directory }: Chain, env: Record<string, string>, ...args: string[]) {
  return await runCliWith(t, db, directory, env, 'verify', ...args)
}

t.test('each manifest names the day before it, with or without a key, and is signed if there is one', async t => {
  const { signer, env } = await withKey(t)
  const chain = await withChain(t, [undefined, undefined, signer])
  const [first, second, third] = await Promise.all(chain.days.map(day => manifestOf(chain, day)))
  t.match(first!.manifest, { previous: null, history: [], signature: undefined })
  t.same(second!.manifest.previous, { range_start: `${chain.days[0]}T00:00:00.000000Z`, manifest_sha256: first!.sha256 })
  t.same(third!.manifest.previous, { range_start: `${chain.days[1]}T00:00:00.000000Z`, manifest_sha256: second!.sha256 })
  t.equal(third!.manifest.signature?.key, signer.id)
  t.equal(Object.keys(JSON.parse(third!.text) as object).at(-1), 'signature')

  const index = JSON.parse(await readFile(join(chain.directory, 'archive/index.json'), 'utf8')) as { keys: object[] }
  t.same(index.keys, [{ id: signer.id, pem: signer.pem }])
  const { code, output } = await verify(t, chain, env, '--all')
  t.equal(code, 0, output)
  t.match(output, /^3 archives, every byte and row: no fault; 2 without a signature$/m)
  t.match(output, new RegExp(`: signed by ${signer.id.slice(0, 16)}$`, 'm'))
  const without = await verify(t, chain, {}, chain.days[2]!)
  t.match(without, {
    code: 0,
    output: new RegExp(`signed by ${signer.id.slice(0, 16)} \\(not checked, because no key is trusted\\)`),
  })
})

t.test('anybody can check a signature with jq and openssl, as the runbook says', { skip: shellTools.without }, async t => {
  const db = await withDatabase(t)
  const directory = await makeDirectory(t)
  const runbook = await readFile(join(repository, 'RUNBOOK.md'), 'utf8')
  const section = runbook.slice(runbook.indexOf('\n## Sign the archive'))
  const commands = (after: string) =>
    /```console\n([^`]+)```/.exec(section.slice(section.indexOf(after)))![1]!.replace(/^\$ /gm, '')
  // The key is made by the runbook's command, too.
  const env = { ...plainEnv(), ARCHIVE_SIGNING_KEY_FILE: join(directory, 'archive-key.pem') }
  await run('sh', ['-ec', commands('Make a key')], { cwd: directory, env })
  const signer = readSigner(await readFile(env.ARCHIVE_SIGNING_KEY_FILE, 'utf8'))

  const day = daysAgo(80)
  await archiveDay(t, { db, directory, days: [day] }, day, signer)
  const { output } = await runCliWith(t, db, directory, { ARCHIVE_SIGNING_KEY_FILE: env.ARCHIVE_SIGNING_KEY_FILE }, 'key')
  t.match(output, `key ${signer.id}\n${signer.pem}`)
  await writeFile(join(directory, 'public.pem'), output)
  await cp(pathsOf(directory, day).manifest, join(directory, 'manifest.json'))
  const check = async () => await run('sh', ['-ec', commands('Check a signature')], { cwd: directory, env: plainEnv() })
  const checked = await check()
  t.match(checked.stdout, /Signature Verified Successfully/)
  t.match(checked.stdout, new RegExp(`^${signer.id}.*\n.*${signer.id}`, 'm'), 'the id is the SHA-256 of the public key')

  const { text } = await manifestOf({ directory }, day)
  await writeFile(join(directory, 'manifest.json'), text.replace('"row_count": 200', '"row_count": 199'))
  await t.rejects(check())
})

t.test('what was changed after it was signed is named, and is not restored, registered or listed', async t => {
  const { signer, env } = await withKey(t)
  const other = await withKey(t)
  const changes: Record<string, [RegExp, (text: string) => string]> = {
    'a field': [
      /the signature is wrong: .* changed since/,
      text => text.replace('"software_version": "', '"software_version": "9'),
    ],
    'a field that nobody reads': [/the signature is wrong/, text => text.replace('{\n', '{\n  "more": 1,\n')],
    'a space': [/the signature is wrong/, text => text.replace('{\n', '{ \n')],
    'the history': [/the signature is wrong/, text => text.replace('"history": []', '"history": [ ]')],
    'another key': [
      /signed by the unknown key [0-9a-f]{64}; if you know whose it is, add its public key to ARCHIVE_TRUSTED_KEYS_FILE/,
      text => {
        const rest = without(JSON.parse(text) as Manifest, 'signature')
        return manifestText(rest, other.signer)
      },
    ],
  }
  const chain = await withChain(t, [signer, signer])
  const day = chain.days[0]!
  const { manifest: path } = pathsOf(chain.directory, day)
  const { text } = await manifestOf(chain, day)
  for (const [name, [fault, change]] of Object.entries(changes)) {
    await t.test(name, async t => {
      await writeFile(path, change(text))
      t.not(change(text), text)
      for (const args of [[], [day], ['--all']]) t.match(await verify(t, chain, env, ...args), { code: 1, output: fault })
      t.match(await runCliWith(t, chain.db, chain.directory, env, 'restore', day), { code: 1, output: fault })
      t.match(await runCliWith(t, chain.db, chain.directory, env, 'reindex'), {
        code: 1,
        output: new RegExp(`${fault.source}[^]*index.json lists 1 archive; 1 manifests could not be read`),
      })
      const lost = await withPlainDatabase(t)
      t.match(await runCliWith(t, lost, chain.directory, env, 'register'), {
        code: 1,
        output: new RegExp(`${fault.source}[^]*1 registered, 0 known before; 1 not registered`),
      })
      await writeFile(path, text)
    })
  }
  t.match(await verify(t, chain, env, '--all'), { code: 0 })
})

t.test('a signature that was stripped is missed, wherever in the chain', async t => {
  const { signer, env } = await withKey(t)
  const chain = await withChain(t, [signer, signer, signer])
  const strip = async (day: string, backdated: boolean) => {
    const { text } = await manifestOf(chain, day)
    const rest = without(JSON.parse(text) as Manifest, 'signature')
    await writeFile(
      pathsOf(chain.directory, day).manifest,
      manifestText(backdated ? { ...rest, created_at: '2020-01-01T00:00:00.000Z' } : rest, undefined),
    )
    return () => writeFile(pathsOf(chain.directory, day).manifest, text)
  }
  const [first, second, third] = chain.days as [string, string, string]
  for (const [day, isBackdated, fault] of [
    [first, false, /names the manifest of this day with the SHA-256/],
    [second, false, /the manifest is not signed, and .* is signed/],
    [second, true, /names the manifest of this day with the SHA-256/],
    [third, false, /the manifest is not signed, and .* is signed/],
  ] as const) {
    const undo = await strip(day, isBackdated)
    t.match(await verify(t, chain, env, '--all'), { code: 1, output: fault }, `${day}, ${isBackdated}`)
    t.match(await verify(t, chain, env, day), { code: 1, output: fault })
    const lost = await withPlainDatabase(t)
    t.match(await runCliWith(t, lost, chain.directory, env, 'register'), {
      code: 1,
      output: /2 registered, 0 known before; 1 not registered/,
    })
    await undo()
  }
})

t.test('swapped manifests, a forged history and a day that is gone are named', async t => {
  const { signer, env } = await withKey(t)
  const chain = await withChain(t, [signer, signer, signer])
  const [first, second, third] = chain.days.map(day => pathsOf(chain.directory, day).manifest) as [string, string, string]
  const texts = await Promise.all([first, second, third].map(path => readFile(path, 'utf8')))

  await writeFile(first, texts[1]!)
  await writeFile(second, texts[0]!)
  const swapped = await verify(t, chain, env)
  t.equal(swapped.code, 1)
  t.match(swapped.output, new RegExp(`date=${chain.days[0]}/manifest.json: the manifest differs from the database: range_start`))
  t.match(swapped.output, new RegExp(`date=${chain.days[1]}/manifest.json: .*${chain.days[2]}/manifest.json names the manifest`))
  await writeFile(first, texts[0]!)

  // An unsigned manifest says that it replaced the signed one.
  const forged = without(JSON.parse(texts[1]!) as Manifest, 'signature')
  const history = [
    {
      manifest_sha256: manifestHash(Buffer.from(texts[1]!)),
      sha256: forged.sha256,
      at: forged.created_at,
      reason: 'gained rows',
    },
  ]
  await writeFile(second, manifestText({ ...forged, history, created_at: '2020-01-01T00:00:00.000Z' }, undefined))
  t.match(await verify(t, chain, env), { code: 1, output: /names the manifest of this day with the SHA-256/ })

  await rm(dirname(second), { recursive: true })
  const gone = await verify(t, chain, env, chain.days[2]!)
  t.match(gone, {
    code: 1,
    output: new RegExp(`the archive of ${chain.days[1]} is gone; .*${chain.days[2]}/manifest.json names it`),
  })
  t.match(await verify(t, chain, {}, chain.days[2]!), { code: 0 }, 'without a key as before')
  const lost = await withPlainDatabase(t)
  t.match(await runCliWith(t, lost, chain.directory, env, 'register'), {
    code: 1,
    output: new RegExp(`the archive of ${chain.days[1]} is gone; .*`),
  })
})

t.test('the chain holds when a day in its middle is archived again, and when a day is archived late', async t => {
  const { signer, env } = await withKey(t)
  const chain = await withChain(t, [undefined, signer, signer])
  const [first, second] = chain.days as [string, string]
  for (const day of [second, first]) {
    const before = await manifestOf(chain, day)
    await archiveAgain(t, chain, day, signer)
    const { manifest } = await manifestOf(chain, day)
    t.match(manifest.history, [
      { manifest_sha256: before.sha256, sha256: before.manifest.sha256, at: String, reason: 'gained rows' },
    ])
    t.equal(manifest.signature?.key, signer.id)
    t.match(await verify(t, chain, env, '--all'), { code: 0 }, day)
  }
  await archiveAgain(t, chain, second, signer, 4712)
  t.equal((await manifestOf(chain, second)).manifest.history?.length, 2)
  await archiveDay(t, chain, daysAgo(81), signer)
  const { code, output } = await verify(t, chain, env, '--all')
  t.equal(code, 0, output)
  const lost = await withPlainDatabase(t)
  t.match(await runCliWith(t, lost, chain.directory, env, 'register'), { code: 0, output: /^4 registered/m })
})

t.test('the chain holds when a device is erased from a day in its middle', async t => {
  const { signer, env } = await withKey(t)
  const chain = await withChain(t, [signer, signer, signer])
  const { db, directory, days } = chain
  const day = days[1]!
  const before = await manifestOf(chain, day)
  const [device] = await enroll(db.sql, 1)
  await db.sql`select fleet.erase_device(${device!}, 'a test')`
  await db.sql`call fleet.run_erasures()`
  t.same((await workAll(t, db, directory, { signing: makeSigning(signer) })).results, ['done', 'done', 'done'])
  const { manifest } = await manifestOf(chain, day)
  t.match(manifest, {
    row_count: 198,
    signature: { key: signer.id },
    history: [{ manifest_sha256: before.sha256, sha256: before.manifest.sha256, reason: 'erased' }],
  })
  const { code, output } = await verify(t, chain, env, '--all')
  t.equal(code, 0, output)
})

t.test('a key is rotated: the earlier one is trusted, and unknown without that', async t => {
  const [old, next] = [await withKey(t), await withKey(t)]
  const chain = await withChain(t, [old.signer, old.signer, next.signer])
  const trusted = join(chain.directory, 'trusted.pem')
  await writeFile(trusted, `key ${old.signer.id}\n${old.signer.pem}`)
  const env = { ...next.env, ARCHIVE_TRUSTED_KEYS_FILE: trusted }
  const { code, output } = await verify(t, chain, env, '--all')
  t.equal(code, 0, output)
  t.match(output, `signed by ${old.signer.id.slice(0, 16)}\n`)
  t.match(output, `signed by ${next.signer.id.slice(0, 16)}\n`)
  t.match(await verify(t, chain, { ARCHIVE_TRUSTED_KEYS_FILE: trusted }, '--all'), { code: 1, output: /unknown key/ })
  t.match(await verify(t, chain, next.env, '--all'), { code: 1, output: new RegExp(`the unknown key ${old.signer.id}`) })
  t.equal((await runCliWith(t, chain.db, chain.directory, env, 'reindex')).code, 0)
  // The index keeps the keys that it knew.
  t.equal((await runCliWith(t, chain.db, chain.directory, {}, 'reindex')).code, 0)
  const index = JSON.parse(await readFile(join(chain.directory, 'archive/index.json'), 'utf8')) as { keys: { id: string }[] }
  t.same(
    index.keys.map(({ id }) => id),
    [old.signer.id, next.signer.id].sort(),
  )
  await archiveAgain(t, chain, chain.days[0]!, undefined)
  t.match(await verify(t, chain, env, '--all'), { code: 1, output: /names the manifest of this day with the SHA-256/ })
})

t.test('a leaked key cannot replace what a later key named', async t => {
  const [leaked, next] = [await withKey(t), await withKey(t)]
  const chain = await withChain(t, [leaked.signer, leaked.signer, next.signer])
  const trusted = join(chain.directory, 'trusted.pem')
  await writeFile(trusted, leaked.signer.pem)
  const env = { ...next.env, ARCHIVE_TRUSTED_KEYS_FILE: trusted }
  const [first, second] = chain.days as [string, string]
  for (const day of [first, second]) {
    const { text, sha256, manifest } = await manifestOf(chain, day)
    const rest = without(manifest, 'signature')
    const replaced = { manifest_sha256: sha256, sha256: rest.sha256, at: rest.created_at, reason: 'gained rows' }
    const forge = (history: object[]) =>
      writeFile(pathsOf(chain.directory, day).manifest, manifestText({ ...rest, software_version: '9', history }, leaked.signer))
    await forge([])
    t.match(await verify(t, chain, env, day), { code: 1, output: /names the manifest of this day with the SHA-256/ }, day)
    await forge([replaced])
    const { code, output } = await verify(t, chain, env, day)
    // A key may replace what it signed itself, until a later key names the day.
    if (day === second) t.match({ code, output }, { code: 1, output: /names the manifest of this day with the SHA-256/ })
    else t.equal(code, 0, output)
    await writeFile(pathsOf(chain.directory, day).manifest, text)
  }
})

t.test('killed between the manifest and its proof, the next run finishes, and the chain holds', async t => {
  for (const step of ['exported', 'uploaded'] as const) {
    await t.test(step, async t => {
      const { signer, env } = await withKey(t)
      const chain = await withChain(t, [signer])
      const [next, last] = [daysAgo(79), daysAgo(78)]
      await fillDay(chain.db.admin, next, 200)
      const partition = await partitionOf(chain.db.sql, next)
      await chain.db.sql`select fleet.archive_partition(${partition})`
      await killAfter(t, chain.db, chain.directory, partition, step, env)
      const { text } = await manifestOf(chain, next)
      const signing = makeSigning(signer)
      t.same((await workAll(t, chain.db, chain.directory, { signing })).results, ['done'])
      t.match(await stateOf(chain.db.sql, partition), { state: 'dropped' })
      t.equal((await manifestOf(chain, next)).text, text)
      await archiveDay(t, chain, last, signer)
      const { code, output } = await verify(t, chain, env, '--all')
      t.equal(code, 0, output)
      t.equal(output.match(/: signed by /g)?.length, 3)
    })
  }
})

t.test('a signed manifest is moved and kept byte for byte, so that it stays signed', async t => {
  const { signer, env } = await withKey(t)
  const chain = await withChain(t, [signer, signer])
  const [day] = chain.days as [string]
  const paths = pathsOf(chain.directory, day)
  const { text } = await manifestOf(chain, day)
  await rename(paths.manifest, paths.oldManifest)
  t.match(await runCliWith(t, chain.db, chain.directory, env, 'reindex'), {
    code: 0,
    output: /1 objects of an older version moved/,
  })
  t.equal((await manifestOf(chain, day)).text, text)
  await chain.db.sql`drop view if exists fleet.device_status_legacy cascade`
  await chain.db.sql`alter table fleet.device_heartbeats drop column network_type`
  await archiveAgain(t, chain, day, signer)
  const [kept] = (await readdir(paths.superseded)).filter(name => name.endsWith('.manifest.json'))
  t.equal(await readFile(join(paths.superseded, kept!), 'utf8'), text)
  t.match(await verify(t, chain, env, '--all'), { code: 0 })
})

t.test('keys that are none are refused by their setting, and nothing of a private key is shown', async t => {
  const { signer, file } = await withKey(t)
  const pem = await readFile(file, 'utf8')
  const rsa = generateKeyPairSync('rsa', { modulusLength: 1024 })
  const private_ = /expected an Ed25519 private key in PEM without a passphrase/
  for (const text of ['', 'x', signer.pem, rsa.privateKey.export({ type: 'pkcs8', format: 'pem' }).toString()])
    t.throws(() => readSigner(text), { message: private_ })
  t.same(
    readPublicKeys(`a comment\n${signer.pem}\n${signer.pem}`).map(({ id }) => id),
    [signer.id, signer.id],
  )
  for (const [text, message] of [
    ['', /it has none/],
    [pem, /block 1 is a PRIVATE KEY/],
    [signer.pem + rsa.publicKey.export({ type: 'spki', format: 'pem' }).toString(), /block 2 is none/],
  ] as const)
    t.throws(() => readPublicKeys(text), { message })

  const db = await withDatabase(t)
  const directory = await makeDirectory(t)
  const wrong = await runCliWith(
    t,
    db,
    directory,
    { ARCHIVE_SIGNING_KEY_FILE: join(directory, 'none'), ARCHIVE_TRUSTED_KEYS_FILE: file },
    'list',
  )
  t.equal(wrong.code, 2)
  t.match(wrong.output, /ARCHIVE_SIGNING_KEY_FILE: the file cannot be read: ENOENT/)
  t.match(wrong.output, /ARCHIVE_TRUSTED_KEYS_FILE: .*key\.pem: expected public keys in PEM; block 1 is a PRIVATE KEY/)
  t.notMatch(wrong.output, pem.split('\n')[1]!)
  t.match(await runCliWith(t, db, directory, {}, 'key'), { code: 2, output: /ARCHIVE_SIGNING_KEY_FILE: is not set/ })
})
