// Compares fleet.device_transitions with a slow, obvious reference: a clock that goes on second by second and looks at each device.
import t from 'tap'
import { size } from '../../local/config.ts'
import { withDatabase } from '../../testing/database.ts'
import { enroll, ingest } from '../../testing/fleet.ts'
import { generator } from '../../testing/random.ts'

const FLEETS = size({ deep: 40, quick: 3 })
const DEVICES = 12
const HOURS = 5
const SEED = 20261129

type Said = 'online' | 'unity_down' | 'clock_skewed'
interface Heard {
  /** Seconds since the beginning. */
  at: number
  said: Said
  nextIn: number | null
}
interface Change {
  event: string
  status: string
  previous: string
  since: number
}

interface Device {
  id: number
  interval: number
  isSkewed: boolean
  heard: Heard[]
  revokedAt: number | null
}

/** What a person would write down who looked at the device each second until `end`. */
function reference(device: Device, offlineAfter: number, end: number): Change[] {
  const changes: Change[] = []
  let status = 'new'
  let last: Heard | undefined
  const becomes = (next: string, since: number) => {
    if (next === status) return
    const event = status === 'offline' && next !== 'offline' && next !== 'revoked' ? 'back' : next
    changes.push({ event, status: next, previous: status, since })
    status = next
  }
  const beats = new Map(device.heard.map(beat => [beat.at, beat]))
  for (let second = 0; second <= end; second++) {
    if (device.revokedAt !== null && second >= device.revokedAt) {
      becomes('revoked', device.revokedAt)
      break
    }
    if (last) {
      const excused = Math.max((last.nextIn ?? 0) - device.interval, 0)
      const silence = second - last.at - excused
      const isOffline = silence > Math.max(offlineAfter, 2 * device.interval)
      const isLate = silence > 1.5 * device.interval + 15 && last.said !== 'clock_skewed'
      if (isLate && status !== 'offline') becomes('late', second - 1)
      if (isOffline) becomes('offline', second - 1)
    }
    const beat = beats.get(second)
    if (beat) {
      last = beat
      if (status === 'offline') becomes('online', second)
      becomes(beat.said, second)
    }
  }
  return changes
}

/** A device's life: it reports for a while, pauses, promises, loses heartbeats, and is revoked perhaps. */
function live(random: () => number, id: number, end: number): Device {
  const interval = [60, 60, 60, 20, 300][Math.floor(random() * 5)]!
  const isSkewed = random() < 0.15
  const device: Device = { id, interval, isSkewed, heard: [], revokedAt: random() < 0.1 ? Math.floor(random() * end) : null }
  let isUnityDown = false
  for (let at = Math.floor(random() * 3 * interval); at < end;) {
    if (random() < 0.05) isUnityDown = !isUnityDown
    const nextIn = random() < 0.06 ? Math.floor(interval + random() * 3_000) : null
    if (device.revokedAt !== null && at >= device.revokedAt) break
    device.heard.push({ at, said: isSkewed ? 'clock_skewed' : isUnityDown ? 'unity_down' : 'online', nextIn })
    const kind = random()
    const pause =
      kind < 0.8
        ? interval * (0.75 + random() / 2)
        : kind < 0.93
          ? interval * (1.4 + random() * 3)
          : kind < 0.97
            ? 500 + random() * 400
            : 700 + random() * 5_000
    at += Math.max(11, Math.round(nextIn !== null && random() < 0.7 ? nextIn + (random() - 0.5) * 200 : pause))
  }
  return device
}

for (let fleet = 0; fleet < FLEETS; fleet++)
  t.test(`transitions of fleet ${fleet + 1} are those of the reference, whenever somebody looked`, async t => {
    const seed = SEED + fleet
    t.comment(`seed ${seed}`)
    const random = generator(seed)
    const { sql, admin } = await withDatabase(t)
    await admin`update cron.job set active = false`.catch(() => {})
    const end = HOURS * 3600
    // In the past, so that nothing depends on how long this takes.
    const base = Math.floor(Date.now() / 1000) - end - 3600
    const time = (second: number) => new Date((base + second) * 1000).toISOString()
    const offlineAfter = [600, 300, 1200][Math.floor(random() * 3)]!
    await admin`update fleet.settings set offline_after = ${offlineAfter} * interval '1 second'`
    const ids = await enroll(sql, DEVICES)
    const devices = ids.map(id => live(random, id, end))
    for (const { id, interval } of devices)
      await admin`update fleet.devices set heartbeat_interval = ${interval} * interval '1 second' where device_id = ${id}`

    await sql`select fleet.note_changed_devices()`
    // They were enrolled at the beginning.
    await admin`update fleet.device_last_status set noted_since = ${time(0)}`

    type Deed = { at: number; order: number; what: () => Promise<unknown> }
    const deeds: Deed[] = []
    for (const { id, heard, isSkewed, revokedAt } of devices) {
      for (const { at, said, nextIn } of heard) {
        const ts = time(isSkewed ? at - 3 * 3600 : at)
        const beat = {
          device_id: id,
          ts,
          ...(said === 'unity_down' && { unity_running: false }),
          ...(nextIn && { next_in_s: nextIn }),
        }
        deeds.push({ at, order: 2, what: () => ingest(sql, [beat], time(at)) })
      }
      if (revokedAt !== null)
        deeds.push({
          at: revokedAt,
          order: 0,
          what: async () => {
            // What is due has been noted by then, as each minute does it.
            await sql`select fleet.note_transitions(${[id]}, ${time(revokedAt)})`
            await admin`update fleet.devices set revoked_at = ${time(revokedAt)} where device_id = ${id}`
            await sql`select fleet.note_changed_devices(5000, ${time(revokedAt)})`
          },
        })
    }
    for (let minute = 60, isDown = 0; minute <= end + 60; minute += 60) {
      if (isDown-- > 0) continue
      if (random() < 0.02) isDown = Math.floor(random() * 60)
      if (random() < 0.25) continue
      const at = minute + Math.floor(random() * 20)
      const note = () => sql`select fleet.note_transitions(fleet.devices_to_note(${time(at)}), ${time(at)})`
      const isLost = random() < 0.1
      deeds.push({
        at,
        order: 1,
        what: async () => {
          if (!isLost) return note()
          // Postgres crashes, or the run is cancelled.
          await sql
            .begin(async sql => {
              await sql`select fleet.note_transitions(fleet.devices_to_note(${time(at)}), ${time(at)})`
              throw new Error('lost')
            })
            .catch(() => {})
        },
      })
    }
    deeds.push({
      at: end + 120,
      order: 3,
      what: () => sql`select fleet.note_transitions(fleet.devices_to_note(${time(end + 120)}), ${time(end + 120)})`,
    })
    deeds.sort((a, b) => a.at - b.at || a.order - b.order)
    for (const { what } of deeds) await what()

    let rows = 0
    for (const device of devices) {
      const found = await admin<(Change & { previous_since: number | null })[]>`
        select event, status, previous_status as previous, round(extract(epoch from since) - ${base})::float8 as since,
          round(extract(epoch from previous_since) - ${base})::float8 as previous_since
        from fleet.device_transitions where device_id = ${device.id} order by transition_id`
      const expected = reference(device, offlineAfter, end + 120)
      rows += expected.length
      t.same(
        found.map(({ event, status, previous, since }) => ({ event, status, previous, since })),
        expected,
        `device ${device.id}: ${expected.length} changes`,
      )
      t.same(
        found.slice(1).map(({ previous_since }) => previous_since),
        expected.slice(0, -1).map(({ since }) => since),
        'each knows since when the status before it held',
      )
      const [state] = await admin`
        select ls.noted_status, ls.noted_since from fleet.device_last_status ls where ls.device_id = ${device.id}`
      t.equal(state?.noted_status, expected.at(-1)?.status ?? 'new')
    }
    t.comment(`${rows} changes`)
  })
