import t from 'tap'
import { withDatabase } from '../../testing/database.ts'
import { enroll } from '../../testing/fleet.ts'

t.test('the last day of a device is in spans of ten minutes, including those without a heartbeat', async t => {
  const { sql } = await withDatabase(t)
  const [device = 0, other = 0] = await enroll(sql, 2)
  const day = new Date(Date.now() - 3 * 86_400_000).toISOString().slice(0, 10)
  const beats = [
    { at: '12:00:00', battery_pct: 80, signal_dbm: -60, unity_running: true },
    { at: '12:05:00', battery_pct: 81, signal_dbm: null, unity_running: false },
    { at: '12:09:59.999999', battery_pct: null, signal_dbm: -65, unity_running: null },
    { at: '12:10:00', battery_pct: null, signal_dbm: null, unity_running: false },
    // After the requested moment, and more than a day before it.
    { at: '12:17:01', battery_pct: 1, signal_dbm: null, unity_running: null },
  ].map(({ at, ...beat }) => ({ ...beat, ts: `${day}T${at}Z`, device_id: device }))
  const before = new Date(Date.parse(`${day}T12:19:59Z`) - 86_400_000).toISOString()
  for (const beat of [...beats, { ...beats[0]!, ts: before }, { ...beats[0]!, device_id: other }]) {
    await sql`
      insert into fleet.device_heartbeats (ts, received_at, device_id, battery_pct, signal_dbm, unity_running)
      values (${beat.ts}::text::timestamptz, now(), ${beat.device_id}, ${beat.battery_pct}, ${beat.signal_dbm}, ${beat.unity_running})
    `
  }
  for (const zone of ['UTC', 'Asia/Kathmandu']) {
    await sql`select set_config('timezone', ${zone}, false)`
    const spans = await sql`
      select span_start, beats, unity_down, battery_pct::float8, signal_dbm::float8 from fleet.device_day(${device}, ${`${day}T12:17:00Z`}::text::timestamptz)
    `
    t.equal(spans.length, 144)
    t.same(spans[0]?.span_start, new Date(Date.parse(`${day}T12:20:00Z`) - 86_400_000))
    t.same(
      spans.slice(-2).map(row => ({ ...row })),
      [
        { span_start: new Date(`${day}T12:00:00Z`), beats: 3, unity_down: 1, battery_pct: 80.5, signal_dbm: -62.5 },
        { span_start: new Date(`${day}T12:10:00Z`), beats: 1, unity_down: 1, battery_pct: null, signal_dbm: null },
      ],
    )
    t.ok(spans.slice(0, -2).every(span => span.beats === 0 && span.battery_pct === null))
  }
  t.equal((await sql`select * from fleet.device_day(999)`).length, 144)
})
