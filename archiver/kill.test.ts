import { readdir } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { size } from '../local/config.ts'
import { generator } from '../testing/random.ts'
import { spawnNode, withDatabase } from '../testing/database.ts'
import {
  archiverEnv,
  daysAgo,
  fillDay,
  leftovers,
  makeDirectory,
  partitionOf,
  pathsOf,
  runOnce,
  stateOf,
  stepsOf,
  withWorker,
} from '../testing/archiver.ts'
import { listArchives, verifyArchive } from './archive/verify.ts'
import { contentOf } from '../testing/rows.ts'

const KILLS = size({ deep: 20, quick: 6 })
const SEED = 20260815

t.test(`killed with -9 at ${KILLS} random moments, the archiver archives each partition once and loses nothing`, async t => {
  t.comment(`seed ${SEED}`)
  const random = generator(SEED)
  const db = await withDatabase(t)
  const directory = await makeDirectory(t)
  const days: { day: string; partition: string; content: object | undefined }[] = []
  const addDay = async () => {
    const day = daysAgo(85 - days.length)
    await fillDay(db.admin, day, 500 + Math.floor(random() * 3000))
    const partition = await partitionOf(db.sql, day)
    const content = await contentOf(db.admin, `fleet.${partition}`)
    await db.sql`select fleet.archive_partition(${partition})`
    days.push({ day, partition, content })
  }

  const steps = new Set<string>()
  for (let killed = 0; killed < KILLS; killed++) {
    // There is always work, so that each kill hits some.
    const waiting = async () =>
      (await db.admin`select from fleet.hb_partitions where state in ('detached', 'archiving', 'archived')`).length
    while ((await waiting()) < 3) await addDay()
    const archiver = await spawnNode(t, 'archiver/main.ts', {
      args: ['--once'],
      env: archiverEnv(db, directory),
      ready: /archiver\.ready/,
    })
    await sleep(random() * 400)
    await archiver.stop('SIGKILL')
    await db.admin`select pg_terminate_backend(pid) from pg_stat_activity where usename = 'fleet_archiver' and datname = current_database()`
    const cut = await db.admin<{ step: string }[]>`
      update fleet.hb_partitions set lease_until = now() - interval '1 second' where lease_until is not null and state <> 'dropped' returning step`
    for (const { step } of cut) steps.add(step)
  }
  t.comment(`steps that were cut short: ${[...steps].join(', ')}`)

  const { code, output } = await runOnce(t, db, directory)
  t.equal(code, 0, output)
  for (const { day, partition, content } of days) {
    t.match(await stateOf(db.sql, partition), { state: 'dropped', ...content })
    const events = await stepsOf(db.sql, partition)
    t.equal(events.filter(event => event === 'partition.archive.end').length, 1, `${partition} is archived once`)
    t.equal(events.filter(event => event === 'partition.drop').length, 1, 'and dropped once')
    t.same((await readdir(pathsOf(directory, day).folder)).sort(), [basename(pathsOf(directory, day).parquet)])
  }
  const { worker } = await withWorker(t, db, directory)
  const archives = await listArchives(worker)
  t.equal(archives.length, days.length)
  for (const archive of archives) t.same(await verifyArchive(worker, archive, false), [])
  t.same(
    (await readdir(join(directory, 'archive/device_heartbeats'))).sort(),
    days.map(({ day }) => `date=${day}`).sort(),
    'no temporary file is left in the store',
  )
  t.same(await leftovers(directory), [])
})
