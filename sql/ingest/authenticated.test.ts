import t from 'tap'
import { plainOnly } from '../../testing/distributed.ts'
import { withDatabase } from '../../testing/database.ts'
import { asRole } from '../../testing/fleet.ts'

interface Answer {
  results: string[] | null
  reasons: (string | null)[] | null
  device_ids: (string | null)[]
  next_intervals: (number | null)[] | null
}

const now = Date.now()
const ago = (seconds: number) => new Date(now - seconds * 1_000).toISOString()

/** The arguments of fleet.ingest_batch() for requests of [token, ...items]. */
function requests(...all: [token: string, ...items: object[]][]) {
  return {
    batch: JSON.stringify(all.flatMap(([, ...items]) => items)),
    tokens: all.map(([token]) => token),
    counts: `{${all.map(([, ...items]) => items.length).join(',')}}`,
  }
}

t.test('each request is authenticated by its own token, and of what is refused nothing is kept', async t => {
  const db = await withDatabase(t)
  const server = asRole(t, db, 'fleet_server')
  const [a, b, gone] = await db.sql<{ device_id: string; token: string }[]>`
    select d.* from unnest('{a,b,gone}'::text[]) n, fleet.create_device(n) d`
  const [{ gateway }] = (await db.sql`select fleet.create_gateway_token('hall') as gateway`) as unknown as [{ gateway: string }]
  await db.sql`select fleet.revoke_device(${gone!.device_id})`
  const ingest = async ({ batch, tokens, counts }: ReturnType<typeof requests>) => {
    const [row] = await server<Answer[]>`
      select to_json(results) as results, to_json(reasons) as reasons, to_json(device_ids::text[]) as device_ids,
        to_json(next_intervals) as next_intervals
      from fleet.ingest_batch(
        ${batch}::text::json,
        p_token_hashes => array(
          select sha256(convert_to(t.token, 'UTF8')) from unnest(${tokens}::text[]) with ordinality as t (token, nth) order by t.nth
        ),
        p_items => ${counts}::text::integer[]
      )`
    return row!
  }
  const id = (device: typeof a) => Number(device!.device_id)
  const good = await ingest(
    requests(
      [a!.token, { ts: ago(10) }],
      [gateway, { device_id: id(b), ts: ago(10) }],
      [b!.token, { device_id: id(b), ts: ago(30) }],
    ),
  )
  t.match(good, {
    results: null,
    reasons: null,
    device_ids: [a, b, b].map(each => each!.device_id),
    next_intervals: [60, 60, 60],
  })

  const mixed = await ingest(
    requests(
      [gone!.token, { ts: ago(50) }, { device_id: id(a), ts: '2001-01-01' }],
      [a!.token, { ts: ago(10) }, { ts: ago(50) }, { device_id: id(b), ts: ago(50) }, { ts: '2001-01-01' }],
      ['nothing', { device_id: id(a), ts: ago(70) }],
      [gateway, { device_id: id(gone), ts: ago(50) }, { device_id: 999 }, { ts: ago(50) }, { device_id: id(b), ts: ago(70) }],
    ),
  )
  t.same(mixed, {
    results: [
      ...['unauthorized', 'unauthorized'],
      ...['duplicate', 'stored', 'unknown_device', 'quarantined'],
      'unauthorized',
      ...['unknown_device', 'unknown_device', 'unknown_device', 'stored'],
    ],
    reasons: [...Array<null>(5).fill(null), 'too_late', ...Array<null>(5).fill(null)],
    device_ids: [null, null, ...Array<string>(4).fill(a!.device_id), null, gone!.device_id, '999', null, b!.device_id],
    next_intervals: [null, null, 60, 60, null, 60, null, null, null, null, 60],
  })
  t.match(await db.sql`select device_id, count(*)::int from fleet.device_heartbeats group by 1 order by 1`, [
    { device_id: a!.device_id, count: 2 },
    { device_id: b!.device_id, count: 3 },
  ])
  t.match(await db.sql`select device_id from fleet.heartbeat_quarantine`, [{ device_id: a!.device_id }])

  t.match(
    await ingest({ ...requests([a!.token, { ts: ago(90) }]), tokens: [], counts: '{}' }),
    { results: ['unauthorized'] },
    'no token is not trust',
  )
  t.match(
    await ingest({ ...requests([a!.token, { ts: ago(90) }, { device_id: id(b), ts: ago(90) }]), counts: '{1}' }),
    { results: ['stored', 'unauthorized'] },
    'nor is an item that belongs to no token',
  )
  t.match(await ingest({ ...requests([a!.token]), counts: '{5}' }), { results: null, device_ids: null })
})

t.test('a trusted caller names the devices, as before', async t => {
  const { sql } = await withDatabase(t)
  const [{ device_id }] = (await sql`select device_id from fleet.create_device('a')`) as unknown as [{ device_id: string }]
  const batch = JSON.stringify([{ device_id: Number(device_id) }])
  t.match(await sql`select * from fleet.ingest_batch(${batch}::text::json)`, [{ results: null, device_ids: [device_id] }])
  t.match(await sql`select result from fleet.ingest(${batch}::text::json)`, [{ result: 'duplicate' }])
})

const noScans = plainOnly('each node counts the scans of its own copy')
t.test('tokens and devices are found by their indexes, also by a session with an older plan', { skip: noScans }, async t => {
  const db = await withDatabase(t)
  await db.admin`analyze fleet.devices`
  await db.sql`select fleet.create_gateway_token('hall')`
  const session = await db.sql.reserve()
  const call = (devices: number, gateway = false) => session`
    select coalesce(results, '{stored}') as results from (
      select json_agg(json_build_object('device_id', d.device_id)) as batch,
        array_agg(d.token_hash) as hashes, array_agg(1) as items, count(*)::integer as n
      from (select device_id, token_hash from fleet.devices order by md5(device_id::text) limit ${devices}) d
    ) b,
    fleet.ingest_batch(
      coalesce(b.batch, '[]'), now(),
      case when ${gateway} then array(select token_hash from fleet.gateways) else coalesce(b.hashes, '{}') end,
      case when ${gateway} then array[b.n] else coalesce(b.items, '{}') end
    )`
  const scans = async () => {
    const [row] = await session<{ seq: number; idx: number }[]>`
      select seq_scan::int as seq, idx_scan::int as idx from pg_stat_xact_user_tables where relid = 'fleet.devices'::regclass`
    return row!
  }
  for (let n = 0; n < 10; n++) await call(1, n % 2 === 0)
  await db.admin`
    insert into fleet.devices (alias, cohort, token_hash)
    select 'device ' || n, 'default', sha256(n::text::bytea) from generate_series(1, 50000) n`
  // As if all of them had been heard from: a first heartbeat is a transition, which looks at the device once more.
  await db.admin`update fleet.device_last_status set noted_status = 'online'`
  for (const gateway of [false, true]) {
    for (const devices of [1, 50, 1_000]) {
      await session`begin`
      const before = await scans()
      // The query around the call scans the table once.
      const [answer] = await call(devices, gateway)
      t.notOk((answer!.results as string[]).some(result => /un/.test(result)))
      const after = await scans()
      t.same(
        { seq: after.seq - before.seq, idx: after.idx - before.idx },
        // A gateway's own token is looked for among the devices first.
        { seq: 1, idx: devices + Number(gateway) },
        `${devices} of ${gateway ? 'a gateway' : 'devices'}`,
      )
      await session`rollback`
    }
  }
  session.release()
})
