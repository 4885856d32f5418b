// Kills Postgres and the night at random moments while days are settled.
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { size } from '../../local/config.ts'
import { waitFor, withCluster } from '../../testing/database.ts'
import { asRole, daysAgo, enroll, partitionAt, value } from '../../testing/fleet.ts'
import { generator } from '../../testing/random.ts'

const DAYS = [20, 18, 16, 14]
const DEVICES = 100
const MINUTES = 300

t.test('kill -9 of Postgres or of the night leaves each day as it was, or settled', { timeout: 1_800_000 }, async t => {
  const seed = 20261129
  const random = generator(seed)
  const kills = size({ deep: 100, quick: 6 })
  t.comment(`seed ${seed}, ${kills} kills`)
  const db = await withCluster(t, { durable: true })
  const { cluster } = db
  // A new one after each crash: the connections of a pool are dead then.
  let admin = asRole(t, db, 'postgres')
  await admin`update cron.job set schedule = '0 0 1 1 *'`
  const devices = await enroll(db.sql, DEVICES)
  const fill = async (days: number) => {
    await admin`
      insert into fleet.device_heartbeats (ts, received_at, device_id, battery_pct, agent_version)
      select t.ts, t.ts, d.device_id, n % 100, '1.' || n % 7
      from generate_series(0, ${MINUTES - 1}) n
      cross join lateral (select date_trunc('day', ${daysAgo(days)}::timestamptz, 'UTC') + n * interval '1 minute') t (ts)
      cross join unnest(${devices}::bigint[]) d (device_id)
      order by t.ts, d.device_id`
    return partitionAt(db.sql, daysAgo(days))
  }
  const names: string[] = []
  for (const days of DAYS) names.push(await fill(days))
  await admin`update fleet.settings set settle_max_wait = '1 hour'`

  /** What must be the same whatever happens, and whether it is settled. */
  const look = async (name: string) => {
    const [found] = await admin.unsafe<
      { rows: number; sum: string; doubled: number; keys: number; closed: boolean; noted: boolean; unsorted: number }[]
    >(`
      select count(*)::int as rows, sum(hashtextextended(h::text, 0)::numeric)::text as sum,
        (count(*) - count(distinct (device_id, fleet.heartbeat_bucket(ts))))::int as doubled,
        count(*) filter (where is_behind)::int as unsorted,
        (select count(*)::int from pg_index where indrelid = 'fleet.${name}'::regclass and indisunique and indisvalid) as keys,
        fleet.is_settled('fleet.${name}'::regclass) as closed,
        (select settled_at is not null from fleet.hb_partitions where partition_name = '${name}') as noted
      from (
        select h as h, device_id, ts, device_id < lag(device_id) over (order by ctid)
          or device_id = lag(device_id) over (order by ctid) and ts > lag(ts) over (order by ctid) as is_behind
        from fleet.${name} h
      ) h`)
    return found!
  }
  const before = new Map<string, { rows: number; sum: string }>()
  for (const name of names) {
    const { rows, sum } = await look(name)
    t.equal(rows, DEVICES * MINUTES)
    before.set(name, { rows, sum })
  }

  const seen = { settled: 0, open: 0, inTheMiddle: 0 }
  for (let kill = 0; kill < kills; kill++) {
    const session = asRole(t, db, 'fleet_owner')
    const pid = Number(await value(session`select pg_backend_pid()`))
    const night = session`call fleet.nightly()`.then(
      () => 'ended',
      () => 'killed',
    )
    // Half of them from the moment at which the rewrite of a day has begun.
    const isAtRewrite = random() < 0.5
    if (isAtRewrite)
      await Promise.race([
        night,
        waitFor(async () => (await admin`select from pg_stat_progress_cluster`.catch(() => [])).length > 0, { every: 1 }).catch(
          () => {},
        ),
      ])
    await sleep(random() * (isAtRewrite ? 60 : 1500))
    const how = kill % 3
    if (how === 0) {
      process.kill((await cluster.pid()) ?? 0, 'SIGKILL')
      await waitFor(async () => !(await cluster.pid()))
      await night
      await cluster.start()
    } else if (how === 1) {
      // Postgres restarts itself after this.
      if ((await admin`select from pg_stat_activity where pid = ${pid}`).length > 0)
        try {
          process.kill(pid, 'SIGKILL')
        } catch {
          // It has just ended.
        }
      await night
    } else {
      await admin`select pg_terminate_backend(${pid})`
      await night
    }
    await waitFor(
      async () => {
        await admin.end({ timeout: 1 })
        admin = asRole(t, db, 'postgres')
        return admin`select 1`.then(
          () => true,
          () => false,
        )
      },
      { timeoutMs: 60_000, every: 200 },
    )
    if ((await night) === 'killed') seen.inTheMiddle++
    await session.end({ timeout: 1 })

    for (const name of names) {
      const found = await look(name)
      t.match(found, { ...before.get(name), doubled: 0 }, `kill ${kill} (${how}): nothing is lost or doubled in ${name}`)
      t.ok(found.closed ? found.keys === 0 && found.noted && found.unsorted === 0 : found.keys === 1 && !found.noted, name)
      seen[found.closed ? 'settled' : 'open']++
      // A row that is there already: refused or recognized.
      const again = await admin
        .unsafe(`insert into fleet.device_heartbeats select * from fleet.${name} limit 1 on conflict do nothing returning 1`)
        .then(
          rows => rows.length,
          (error: { code: string }) => error.code,
        )
      t.equal(again, found.closed ? '23514' : 0, name)
    }
    // The rest of the kills needs something to do.
    for (const name of names) if (random() < 0.6) await admin`select fleet.unsettle_partition(${name})`
  }
  t.comment('seen', seen)
  t.ok(seen.inTheMiddle > 0, 'some nights were killed')

  await asRole(t, db, 'fleet_owner')`call fleet.nightly()`
  for (const name of names)
    t.match(await look(name), { ...before.get(name), doubled: 0, unsorted: 0, keys: 0, closed: true, noted: true })
})
