// Batches of the same devices at the same time, each in another order: gateways that overlap, and what is sent a second time. In a
// distributed store (npm run test:citus) through every node, and twice through one.
import t from 'tap'
import { urlsOfNodes } from '../../testing/database.ts'
import { enroll, value } from '../../testing/fleet.ts'
import { generator } from '../../testing/random.ts'
import { withWriter } from '../../testing/server.ts'
import { Problem } from '../problem.ts'
import type { Outcome } from './writer.ts'

const DEVICES = 60
const ROUNDS = 5

t.test('overlapping batches all end, and no heartbeat is lost or doubled', async t => {
  const { db, chunk, writerTo } = await withWriter(t)
  const devices = await enroll(db.sql, DEVICES)
  const random = generator(40)
  const shuffled = () => devices.map(device_id => ({ device_id, place: random() })).sort((a, b) => a.place - b.place)
  const start = Date.now() - 3_600_000
  const ts = (batch: number) => new Date(start + batch * 20_000).toISOString()
  const urls = urlsOfNodes(db, 'fleet_server')
  const writers = [...urls, ...urls].map(url => writerTo(url))
  const results: string[] = []
  // Batches that were answered with 503. Devices send them again.
  let refused = 0
  await Promise.all(
    writers.map(async (writer, nth) => {
      for (let round = 0; round < ROUNDS; round++) {
        // Each heartbeat goes out twice: its own batch, and half of that of the neighbour.
        const own = round * writers.length + nth
        const other = round * writers.length + ((nth + 1) % writers.length)
        const items = shuffled().map(({ device_id, place }) => ({ device_id, ts: ts(place < 0.5 ? other : own) }))
        for (const batch of [items, shuffled().map(({ device_id }) => ({ device_id, ts: ts(own) }))]) {
          let outcomes = await writer.store(chunk(...batch))
          for (; outcomes.some(outcome => outcome instanceof Problem); refused++) outcomes = await writer.store(chunk(...batch))
          results.push(...outcomes.map(outcome => (outcome as Outcome).result))
        }
      }
    }),
  )
  t.comment(`${refused} of ${2 * ROUNDS * writers.length} batches were answered with 503`)
  const sent = DEVICES * ROUNDS * writers.length
  t.same([...new Set(results)].sort(), ['duplicate', 'stored'])
  t.equal(results.filter(result => result === 'stored').length, sent, 'each is stored once')
  t.equal(await value(db.sql`select count(*)::int from fleet.device_heartbeats`), sent)
  t.equal(await value(db.sql`select count(distinct (device_id, ts))::int from fleet.device_heartbeats`), sent)
  t.match(
    await db.sql`select count(*)::int as devices, min(last_ts) as oldest from fleet.device_last_status`,
    [{ devices: DEVICES, oldest: new Date(ts(ROUNDS * writers.length - 1)) }],
    'last status is that of the newest',
  )
})
