import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { ListObjectsV2Command } from '@aws-sdk/client-s3'
import t from 'tap'
import { leftToCi, size } from '../../local/config.ts'
import { spawnNode, withDatabase } from '../../testing/database.ts'
import type { Fate } from '../../testing/s3-proxy.ts'
import {
  openBucket,
  ownStore,
  withObjectStore,
  withoutOwnStore,
  withoutStore as skip,
  withProxy,
  withUser,
  type TestBucket,
} from '../../testing/s3.ts'
import {
  archiverEnv,
  daysAgo,
  fillAwkwardDay,
  fillDay,
  leftovers,
  makeDirectory,
  partitionOf,
  retiredDay,
  runOnce,
  stateOf,
  stepsOf,
} from '../../testing/archiver.ts'
import { contentOf } from '../../testing/rows.ts'

// The store is started by the first test that needs it.
t.setTimeout(600_000)

/** The settings of an archiver process that stores in a bucket. */
function bucketEnv({ url, endpoint, env }: TestBucket, through = endpoint) {
  return { ARCHIVE_URL: url, AWS_ENDPOINT_URL_S3: through, ...env }
}

/** The stored keys, without the prefix of the archive. */
async function keysIn({ client, bucket, url }: TestBucket) {
  const prefix = `${new URL(url).pathname.slice(1)}/`
  const page = await client.send(new ListObjectsV2Command({ Bucket: bucket, Prefix: prefix }))
  return (page.Contents ?? []).map(({ Key = '' }) => Key.slice(prefix.length))
}

t.test('retired days go to the bucket, are dropped, and a restore brings them back row for row', { skip }, async t => {
  const bucket = await withObjectStore(t)
  const db = await withDatabase(t)
  const days = [retiredDay, daysAgo(65)]
  await fillDay(db.admin, days[0]!, 20_000)
  await fillAwkwardDay(db.admin, days[1]!)
  const partitions = await Promise.all(days.map(day => partitionOf(db.sql, day)))
  const before = await Promise.all(partitions.map(partition => contentOf(db.admin, `fleet.${partition}`)))
  const directory = await makeDirectory(t)

  await db.sql`select fleet.set_retention('60 days')`
  await db.sql`call fleet.nightly()`
  const { code, output } = await runOnce(t, db, directory, bucketEnv(bucket))
  t.equal(code, 0, output)
  for (const [n, partition] of partitions.entries()) {
    const state = await stateOf(db.sql, partition)
    t.match(state, { state: 'dropped', ...before[n] })
    const name = `date=${days[n]}/device_heartbeats_${days[n]!.replaceAll('-', '')}.parquet`
    t.equal(state.archive_url, `${bucket.url}/device_heartbeats/${name}`)
    t.same(await stepsOf(db.sql, partition), [
      'partition.detach',
      'partition.archive.start',
      'partition.archive.end',
      'partition.drop',
    ])
  }
  const keys = await keysIn(bucket)
  for (const day of days) t.ok(keys.includes(`manifests/date=${day}/manifest.json`))
  t.ok(keys.includes('index.json'))

  for (const day of days) await db.sql`select fleet.request_restore(${day}::date)`
  const restored = await runOnce(t, db, directory, bucketEnv(bucket))
  t.equal(restored.code, 0, restored.output)
  for (const [n, partition] of partitions.entries()) {
    t.match(await stateOf(db.sql, partition), { state: 'restored' })
    t.same(await contentOf(db.admin, `fleet.${partition}`), before[n])
  }
  t.same(await leftovers(directory), [])
})

t.test('a store that fails half of its requests gets each partition once', { skip }, async t => {
  const bucket = await withObjectStore(t)
  const db = await withDatabase(t)
  const days = [62, 63, 64, 65, 66].map(daysAgo)
  for (const day of days) await fillDay(db.admin, day, 3000)
  const partitions = await Promise.all(days.map(day => partitionOf(db.sql, day)))
  const before = await Promise.all(partitions.map(partition => contentOf(db.admin, `fleet.${partition}`)))
  for (const partition of partitions) await db.sql`select fleet.archive_partition(${partition})`
  const directory = await makeDirectory(t)
  const fates: Fate[] = ['refuse', 'cut', 'lose', 'break']
  const proxy = await withProxy(t, bucket.endpoint, number => (number % 2 === 0 ? fates[(number / 2) % 4]! : 'pass'))

  const { code, output } = await runOnce(t, db, directory, bucketEnv(bucket, proxy.endpoint))
  t.equal(code, 0, output)
  for (const [n, partition] of partitions.entries()) {
    t.match(await stateOf(db.sql, partition), { state: 'dropped', ...before[n] })
    t.equal((await stepsOf(db.sql, partition)).filter(event => event === 'partition.archive.end').length, 1)
    await db.sql`select fleet.request_restore(${days[n]!}::date)`
  }
  t.ok(proxy.seen.filter(({ fate }) => fate !== 'pass').length > 20, 'it did fail')
  const restored = await runOnce(t, db, directory, bucketEnv(bucket, proxy.endpoint))
  t.equal(restored.code, 0, restored.output)
  for (const [n, partition] of partitions.entries()) t.same(await contentOf(db.admin, `fleet.${partition}`), before[n])
})

t.test('a file that the store lost leaves no manifest that would block later content of the day', { skip }, async t => {
  const bucket = await withObjectStore(t)
  const db = await withDatabase(t)
  await fillDay(db.admin, retiredDay, 1000)
  const partition = await partitionOf(db.sql, retiredDay)
  await db.sql`select fleet.archive_partition(${partition})`
  const directory = await makeDirectory(t)
  const proxy = await withProxy(t, bucket.endpoint, (_, { method, url }) =>
    method === 'PUT' && url?.includes('.parquet') ? 'swallow' : 'pass',
  )
  const { code } = await runOnce(t, db, directory, bucketEnv(bucket, proxy.endpoint))
  t.equal(code, 1)
  t.match(await stateOf(db.sql, partition), {
    state: 'archive_failed',
    last_error: /_\d+\.parquet: the store confirmed this object, but does not have it/,
  })
  t.same(
    (await keysIn(bucket)).filter(key => key.includes('date=')),
    [],
  )

  const table = `fleet_detached.${partition}`
  await db.admin`insert into ${db.admin(table)} (ts, received_at, device_id) select min(ts), now(), 900 from ${db.admin(table)}`
  const grown = await contentOf(db.admin, table)
  await db.sql`select fleet.retry_archive(${partition})`
  const again = await runOnce(t, db, directory, bucketEnv(bucket))
  t.equal(again.code, 0, again.output)
  t.match(await stateOf(db.sql, partition), { state: 'dropped', ...grown })
})

t.test(
  'killed with -9 at any request to a store that fails half of them, the next run archives the day once',
  { skip: skip || leftToCi() },
  async t => {
    const bucket = await withObjectStore(t)
    const db = await withDatabase(t)
    const directory = await makeDirectory(t)
    const fates: Fate[] = ['refuse', 'cut', 'lose', 'break']
    const contents = new Map<string, unknown>()
    const kills = size({ deep: 20, quick: 6 })
    for (let at = 0; at < kills; at++) {
      const day = daysAgo(61 + at)
      await fillDay(db.admin, day, 1000)
      const partition = await partitionOf(db.sql, day)
      const before = await contentOf(db.admin, `fleet.${partition}`)
      await db.sql`select fleet.archive_partition(${partition})`

      const archiver = { pid: 0 }
      const proxy = await withProxy(t, bucket.endpoint, number => {
        if (number === at && archiver.pid > 0) {
          process.kill(archiver.pid, 'SIGKILL')
          archiver.pid = 0
          // Half of them fail after the store has done what was asked.
          return at % 4 < 2 ? 'cut' : 'lose'
        }
        return number % 2 === 0 ? 'pass' : fates[((number - 1) / 2) % 4]!
      })
      const env = bucketEnv(bucket, proxy.endpoint)
      const first = await spawnNode(t, 'archiver/main.ts', { args: ['--once'], env: archiverEnv(db, directory, env) })
      archiver.pid = first.pid
      t.equal((await first.exited).signal, 'SIGKILL', first.output())
      const state = String((await stateOf(db.sql, partition)).state)
      t.ok(['archiving', 'archived', 'dropped'].includes(state), `killed at request ${at}, it is ${state}`)
      // The dead archiver's sessions end and its lease runs out.
      await db.admin`select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = 'fleet_archiver' and datname = current_database()`
      await db.admin`update fleet.hb_partitions set lease_until = now() - interval '1 second' where lease_until is not null`
      const { code, output } = await runOnce(t, db, directory, env)
      t.equal(code, 0, output)
      t.match(await stateOf(db.sql, partition), { state: 'dropped', ...before })
      t.equal((await stepsOf(db.sql, partition)).filter(event => event === 'partition.archive.end').length, 1)
      contents.set(partition, before)
    }
    await db.sql`select fleet.request_restore(${daysAgo(60 + kills)}::date, ${daysAgo(61)}::date)`
    t.equal((await runOnce(t, db, directory, bucketEnv(bucket))).code, 0)
    t.equal(contents.size, kills)
    for (const [partition, before] of contents)
      t.same(await contentOf(db.admin, `fleet.${partition}`), before, 'restored unchanged')
    t.same(await leftovers(directory), [])
  },
)

t.test('hb_partitions keeps the error of the store as the reason, and the partition stays', { skip }, async t => {
  const bucket = await withObjectStore(t)
  const db = await withDatabase(t)
  await fillDay(db.admin, retiredDay, 1000)
  const partition = await partitionOf(db.sql, retiredDay)
  const before = await contentOf(db.admin, `fleet.${partition}`)
  await db.sql`select fleet.archive_partition(${partition})`
  const directory = await makeDirectory(t)
  const { code } = await runOnce(t, db, directory, { ...bucketEnv(bucket), AWS_SECRET_ACCESS_KEY: 'wrong' })
  t.equal(code, 1)
  t.match(await stateOf(db.sql, partition), {
    state: 'archive_failed',
    last_error: /the store refuses the secret key; correct AWS_SECRET_ACCESS_KEY/,
  })
  t.same(await contentOf(db.admin, `fleet_detached.${partition}`), before)
  await db.sql`select fleet.retry_archive(${partition})`
  t.equal((await runOnce(t, db, directory, bucketEnv(bucket))).code, 0)
  t.match(await stateOf(db.sql, partition), { state: 'dropped', ...before })
})

t.test(
  'archives in older places stay readable: in a directory, and in a store with another address and user',
  { skip: withoutOwnStore },
  async t => {
    const older = await withObjectStore(t)
    const { endpoint } = await ownStore()
    const now = await openBucket(t, endpoint, await withUser('mover'))
    const other = await withProxy(t, endpoint)
    const db = await withDatabase(t)
    const directory = await makeDirectory(t)
    const days = [70, 71, 72].map(daysAgo)
    const partitions: string[] = []
    const before: unknown[] = []
    const credentials = join(directory, 'credentials')
    await writeFile(
      credentials,
      `[ceph]\naws_access_key_id = ${older.env.AWS_ACCESS_KEY_ID}\naws_secret_access_key = ${older.env.AWS_SECRET_ACCESS_KEY}\n`,
    )
    const env = {
      ...bucketEnv(now, other.endpoint),
      AWS_SHARED_CREDENTIALS_FILE: credentials,
      ARCHIVE_OLDER_STORES: `${older.bucket}=${older.endpoint.replace('//', '//ceph@')}`,
    }
    for (const [n, place] of [bucketEnv(older), {}, env].entries()) {
      await fillDay(db.admin, days[n]!, 500)
      partitions.push(await partitionOf(db.sql, days[n]!))
      before.push(await contentOf(db.admin, `fleet.${partitions[n]!}`))
      await db.sql`select fleet.archive_partition(${partitions[n]!})`
      const { code, output } = await runOnce(t, db, directory, place)
      t.equal(code, 0, output)
    }
    const urls = (await db.sql<{ archive_url: string }[]>`select archive_url from fleet.archives order by range_start desc`).map(
      row => row.archive_url,
    )
    for (const [n, place] of [older.url, `file://${directory}/archive`, now.url].entries())
      t.ok(urls[n]!.startsWith(`${place}/`), `${urls[n]!} is in ${place}`)

    const archive = async (settings: Record<string, string | undefined>, ...args: string[]) => {
      const cli = await spawnNode(t, 'archiver/cli.ts', { args, env: archiverEnv(db, directory, settings) })
      const { code } = await cli.exited
      return { code, output: cli.output() }
    }
    t.match(await archive(env, 'verify', '--all'), { code: 0 })
    t.match(await archive(env, 'query', 'select count(*) as rows from device_heartbeats', '--csv'), {
      code: 0,
      output: /^1500$/m,
    })
    const unknown = await archive({ ...env, ARCHIVE_OLDER_STORES: undefined }, 'verify', days[0]!)
    t.match(
      unknown,
      { code: 1, output: new RegExp(`these credentials .*${older.bucket}`) },
      'reported if the setting does not name the store',
    )

    await db.sql`select fleet.request_restore(${days[2]!}::date, ${days[0]!}::date)`
    const restored = await runOnce(t, db, directory, env)
    t.equal(restored.code, 0, restored.output)
    for (const [n, partition] of partitions.entries()) t.same(await contentOf(db.admin, `fleet.${partition}`), before[n])

    // Days that came back and are retired again go to the current archive.
    await db.sql`select fleet.release_partition(${partitions[0]!})`
    await db.sql`select fleet.archive_partition(${partitions[0]!})`
    t.equal((await runOnce(t, db, directory, env)).code, 0)
    t.match(await stateOf(db.sql, partitions[0]!), { state: 'dropped', archive_url: new RegExp(`^${now.url}/`) })
  },
)
