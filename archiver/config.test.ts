import t from 'tap'
import { readConfig } from './config.ts'
import { SettingsError } from '../lib/errors.ts'

t.test('with its own database URL the login decides the role; DATABASE_URL is used with the role fleet_archiver', async t => {
  const base = { ARCHIVE_URL: 'file:///var/archive/', DATABASE_URL: 'postgres://owner@db/fleet' }
  t.match(readConfig(base), {
    database: { url: 'postgres://owner@db/fleet', role: 'fleet_archiver' },
    archiveUrl: 'file:///var/archive',
    logLevel: 'info',
  })
  t.same(readConfig({ ...base, ARCHIVER_DATABASE_URL: 'postgresql://a@db/fleet' }).database, { url: 'postgresql://a@db/fleet' })
  t.equal(
    readConfig({ ...base, ARCHIVER_DATABASE_URL: '' }).database.url,
    base.DATABASE_URL,
    'an empty variable counts as not set',
  )
})

t.test('its database URLs may have several hosts, in the supported form', async t => {
  const base = { ARCHIVE_URL: 'file:///var/archive/', DATABASE_URL: 'postgres://owner@db/fleet' }
  const url = 'postgres://a:p@db1:5432,db2/fleet?target_session_attrs=primary'
  const read = readConfig({ ...base, ARCHIVER_DATABASE_URL: url, VERIFIER_DATABASE_URL: url })
  t.match(read, { database: { url }, verifierDatabase: { url } })
  for (const name of ['ARCHIVER_DATABASE_URL', 'VERIFIER_DATABASE_URL', 'DATABASE_URL']) {
    t.throws(() => readConfig({ ...base, [name]: url.replace('primary', 'any') }), {
      message: new RegExp(`${name}: must have a target_session_attrs of primary`),
    })
  }
})

t.test('stores are file:// with an absolute path, or s3:// with a bucket', async t => {
  const read = (ARCHIVE_URL: string) => readConfig({ ARCHIVE_URL, DATABASE_URL: 'postgres://db' }).archiveUrl
  t.equal(read('s3://bucket'), 's3://bucket')
  t.equal(read('s3://bucket/some/prefix/'), 's3://bucket/some/prefix')
  for (const wrong of ['/var/archive', 'file://archive', 'file:///', 's3://', 's3:///prefix', 's3://B', 'https://bucket']) {
    t.throws(() => read(wrong), { message: /ARCHIVE_URL: expected/ }, wrong)
  }
})

t.test('all problems are told together, without the password', async t => {
  const wrong = { DATABASE_URL: 'mysql://user:secret@db', AWS_ENDPOINT_URL_S3: 'nowhere', LOG_LEVEL: 'loud' }
  try {
    readConfig(wrong)
    t.fail('expected an error')
  } catch (error) {
    t.ok(error instanceof SettingsError)
    const { message } = error as Error
    for (const name of ['DATABASE_URL', 'ARCHIVE_URL', 'AWS_ENDPOINT_URL_S3', 'LOG_LEVEL']) t.match(message, `${name}: `)
    t.notMatch(message, 'secret')
  }
})

t.test('older stores are buckets with an address and optionally a profile for their credentials', async t => {
  const settings = { DATABASE_URL: 'postgres://x@h/d', ARCHIVE_URL: 's3://now/a' }
  const { olderStores } = readConfig({
    ...settings,
    ARCHIVE_OLDER_STORES: 'old=https://ceph@s3.internal:7480, older.one=http://10.0.0.1',
  })
  t.same(
    [...olderStores!],
    [
      ['old', { endpoint: 'https://s3.internal:7480', profile: 'ceph' }],
      ['older.one', { endpoint: 'http://10.0.0.1' }],
    ],
  )
  for (const [value, problem] of [
    ['old', /ARCHIVE_OLDER_STORES: expected bucket=https:\/\/\[profile@\]host\[:port\], got old$/m],
    ['old=ftp://x', /got old=ftp:\/\/x/],
    ['old=https://ceph:secret@x', /got old= with a password/],
    ['now=https://x', /now is the bucket of ARCHIVE_URL/],
  ] as const)
    t.throws(() => readConfig({ ...settings, ARCHIVE_OLDER_STORES: value }), { message: problem })
})

t.test('what a bucket demands is checked before anything is written', async t => {
  const settings = { DATABASE_URL: 'postgres://x@h/d', ARCHIVE_URL: 's3://now/a' }
  const read = (env: Record<string, string>) => readConfig({ ...settings, ...env })
  t.same(read({}).bucketRules, { encryption: undefined, kmsKey: undefined, checksum: undefined })
  t.same(read({ ARCHIVE_SSE: 'aws:kms', ARCHIVE_SSE_KMS_KEY_ID: 'alias/archive', ARCHIVE_CHECKSUM: 'md5' }).bucketRules, {
    encryption: 'aws:kms',
    kmsKey: 'alias/archive',
    checksum: 'md5',
  })
  t.match(read({ ARCHIVE_SSE: 'AES256' }).bucketRules, { encryption: 'AES256', kmsKey: undefined })
  const kms = { ARCHIVE_SSE: 'aws:kms' }
  for (const [env, problem] of [
    [{ ARCHIVE_SSE: 'aes' }, /ARCHIVE_SSE: .*"AES256"\|"aws:kms"\|"aws:kms:dsse"/],
    [{ ARCHIVE_CHECKSUM: 'crc32' }, /ARCHIVE_CHECKSUM: .*"sha256"\|"md5"\|"none"/],
    [{ ARCHIVE_SSE_KMS_KEY_ID: 'k' }, /ARCHIVE_SSE_KMS_KEY_ID: needs ARCHIVE_SSE=aws:kms or aws:kms:dsse, which is not set/],
    [{ ARCHIVE_SSE: 'AES256', ARCHIVE_SSE_KMS_KEY_ID: 'k' }, /ARCHIVE_SSE_KMS_KEY_ID: needs .*, which is AES256/],
    [{ ...kms, ARCHIVE_SSE_KMS_KEY_ID: 'a\nx-amz-acl: public' }, /ARCHIVE_SSE_KMS_KEY_ID: expected the ARN, id or alias/],
    [{ ...kms, ARCHIVE_URL: 'file:///a' }, /ARCHIVE_SSE: is only for an ARCHIVE_URL with s3:\/\//],
    [{ ...kms, ARCHIVE_SSE_KMS_KEY_ID: 'k', ARCHIVE_URL: 'file:///a' }, /ARCHIVE_SSE_KMS_KEY_ID: is only for/],
    [{ ARCHIVE_CHECKSUM: 'md5', ARCHIVE_URL: 'file:///a' }, /ARCHIVE_CHECKSUM: is only for/],
  ] as const)
    t.throws(() => read(env), { message: problem })
})
