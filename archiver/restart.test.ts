import { setTimeout as sleep } from 'node:timers/promises'
import postgres from 'postgres'
import t from 'tap'
import { leftToCi, size } from '../local/config.ts'
import { spawnNode, waitFor, withCluster } from '../testing/database.ts'
import {
  archiverEnv,
  daysAgo,
  fillDay,
  leftovers,
  makeDirectory,
  partitionOf,
  stateOf,
  stepsOf,
  withWorker,
} from '../testing/archiver.ts'
import { listArchives, verifyArchive } from './archive/verify.ts'
import { contentOf } from '../testing/rows.ts'

t.test(
  'Postgres crashes repeatedly under a working archiver: each day is archived once and none is lost',
  { skip: leftToCi(), timeout: 300_000 },
  async t => {
    const db = await withCluster(t, { durable: true })
    const directory = await makeDirectory(t)
    // A new client for each read: those of the test do not survive a crash.
    const ask = async <T>(use: (sql: postgres.Sql) => Promise<T>) => {
      const sql = postgres(db.url('postgres'), { max: 1, onnotice: () => {} })
      try {
        return await use(sql)
      } finally {
        await sql.end({ timeout: 1 })
      }
    }
    const days = await ask(async sql => {
      const made: { partition: string; content: object | undefined }[] = []
      for (let n = 0; n < 8; n++) {
        const day = daysAgo(80 - n)
        await fillDay(sql, day, 20_000)
        const partition = await partitionOf(sql, day)
        const content = await contentOf(sql, `fleet.${partition}`)
        await sql`select fleet.archive_partition(${partition})`
        made.push({ partition, content })
      }
      return made
    })

    const archiver = await spawnNode(t, 'archiver/main.ts', { env: archiverEnv(db, directory), ready: /archiver\.ready/ })
    let crashes = 0
    for (; crashes < size({ deep: 5, quick: 3 }); crashes++) {
      // Each time in the middle of some step of some partition.
      await sleep(150 + crashes * 130)
      await db.cluster.stop('immediate')
      await db.cluster.start()
      // Its lease is freed at once. A real lease would last for five more minutes.
      await ask(
        sql => sql`
      update fleet.hb_partitions set lease_until = now() - interval '1 second', next_attempt_at = now()
      where state in ('archiving', 'archive_failed', 'archived')
    `,
      )
    }
    await waitFor(
      async () =>
        await ask(async sql => {
          // What failed in a crash is retried after a minute, but the test cannot wait so long.
          await sql`update fleet.hb_partitions set next_attempt_at = now() where state = 'archive_failed'`
          await sql`select fleet.wake_archiver()`
          const [left] = await sql<{ left: number }[]>`
      select count(*)::int as left from fleet.hb_partitions where state not in ('active', 'dropped')
    `
          return left?.left === 0
        }),
      { timeoutMs: 120_000, what: () => `all days to be dropped; the archiver printed:\n${archiver.output()}` },
    )
    t.equal((await archiver.stop('SIGTERM')).code, 0, 'it survived every crash, and stops when it is told to')

    await ask(async sql => {
      for (const { partition, content } of days) {
        t.match(await stateOf(sql, partition), { state: 'dropped', ...content })
        const events = await stepsOf(sql, partition)
        t.equal(events.filter(event => event === 'partition.archive.end').length, 1, `${partition} is archived once`)
        t.equal(events.filter(event => event === 'partition.drop').length, 1, 'and dropped once')
      }
    })
    const { worker } = await withWorker(t, db, directory)
    const archives = await listArchives(worker)
    t.equal(archives.length, days.length)
    for (const archive of archives) t.same(await verifyArchive(worker, archive, false), [])
    t.same(await leftovers(directory), [])
  },
)
