// npm run demo: a simulated fleet that has a history and sends heartbeats until it is stopped.
import { setMaxListeners } from 'node:events'
import { readFile, rename, writeFile } from 'node:fs/promises'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import type { Sql } from 'postgres'
import { say, step } from '../lib/progress.ts'
import { explain } from '../lib/errors.ts'

const DEVICE_COUNT = 200
const HISTORY_DAYS = 100
/**
 * The history is thinned to a heartbeat every half hour, although devices send one a minute. Only the last day of some devices
 * and the last minutes of all are complete.
 */
const HISTORY_INTERVAL_MS = 30 * 60_000
const LIVE_INTERVAL_MS = 60_000
const OUTAGE_MS = 30 * 60_000
const SAMPLE_MS = 10 * 60_000
const DAY_MS = 86_400_000
/** The store keeps one heartbeat of a device in each bucket. */
const BUCKET_MS = 10_000

interface DemoDevice {
  number: number
  device_id: string
  token: string
}

interface Fleet {
  devices: DemoDevice[]
  /** ISO dates. The days of history from `nextDay` until `firstLiveAt` are not loaded yet. */
  nextDay: string
  firstLiveAt: string
}

/**
 * Enrolls the fleet and loads its history the first time. `file` remembers both, so a second run continues with the same devices,
 * and a run that was interrupted continues where it stopped. Then it retires the days beyond the retention, and sends live
 * heartbeats to the server at `url` until `stopped` is aborted.
 */
export async function startDemo(sql: Sql, url: string, file: string, stopped: AbortSignal) {
  let fleet = await readFile(file, 'utf8').then(
    text => JSON.parse(text) as Fleet,
    () => undefined,
  )
  if (!fleet || !(await isKnown(sql, fleet))) {
    fleet = await step(`Enrolling ${DEVICE_COUNT} simulated devices`, () => enrollFleet(sql))
    await keep(file, fleet)
  }
  if (fleet.nextDay < fleet.firstLiveAt) {
    const rows = await step(`Loading ${HISTORY_DAYS} days of history`, () => loadHistory(sql, fleet, file, stopped))
    stopped.throwIfAborted()
    await loadTrend(sql, fleet)
    say(`${rows.toLocaleString('en')} heartbeats are loaded.`)
    await step('Retiring the days beyond the retention (the archiver takes over from there)', () => sql`call fleet.nightly(null)`)
  }
  stopped.throwIfAborted()
  say(`${DEVICE_COUNT} devices send a heartbeat each minute. Some are offline, and on some Unity is down. Try:

  select * from fleet.fleet_summary;
  select * from fleet.devices_offline;
  select * from fleet.partition_health;
  select * from fleet.archives;
`)
  setMaxListeners(0, stopped) // each device adds a listener
  for (const device of fleet.devices) void beatOn(url, device, stopped)
}

/** A new database, or another one, does not know the devices in the file. */
async function isKnown(sql: Sql, fleet: Fleet) {
  const ids = fleet.devices.map(device => device.device_id)
  const [row] = await sql<{ known: number }[]>`
    select count(*)::integer as known from fleet.devices where device_id = any (${ids}::bigint[]) and revoked_at is null
  `
  return row?.known === fleet.devices.length
}

async function enrollFleet(sql: Sql): Promise<Fleet> {
  // The first generation that is free. Tokens are shown only once, so a fleet whose file was lost cannot be used again.
  const [{ generation } = { generation: 1 }] = await sql<{ generation: number }[]>`
    select coalesce(max(substring(alias from '^sim(\\d+)-\\d+$')::integer), 0) + 1 as generation from fleet.devices
  `
  const devices = await sql<DemoDevice[]>`
    select n as number, d.device_id, d.token
    from generate_series(1, ${DEVICE_COUNT}::integer) n
    cross join lateral fleet.create_device(
      'sim' || ${generation}::integer || '-' || lpad(n::text, 3, '0'),
      case when n % 10 = 0 then 'canary' else 'stores' end
    ) d
    order by n
  `
  const now = Date.now()
  const firstDay = new Date(now - HISTORY_DAYS * DAY_MS).toISOString().slice(0, 10)
  return { devices: [...devices], nextDay: firstDay, firstLiveAt: new Date(now).toISOString() }
}

async function loadHistory(sql: Sql, fleet: Fleet, file: string, stopped: AbortSignal) {
  const firstLive = Date.parse(fleet.firstLiveAt)
  await sql`select fleet.create_partitions(${fleet.nextDay}::date, ${fleet.firstLiveAt}::timestamptz::date)`
  let rows = 0
  for (let day = Date.parse(fleet.nextDay); day < firstLive && !stopped.aborted; day += DAY_MS) {
    // Each day is loaded by one COPY, which is one transaction. So a day is there in full, or is loaded again.
    const [{ loaded } = { loaded: true }] = await sql<{ loaded: boolean }[]>`
      select exists (
        select from fleet.device_heartbeats
        where device_id = ${fleet.devices[0]?.device_id ?? 0}
          and ts >= ${new Date(day)} and ts < ${new Date(Math.min(day + DAY_MS, firstLive))}
      ) as loaded
    `
    if (!loaded) {
      const copy = await sql`
        copy fleet.device_heartbeats
          (ts, received_at, device_id, signal_dbm, battery_pct, unity_running, network_type, agent_version, ip)
        from stdin
      `.writable()
      const lines = [...historyLines(fleet, day, Math.min(day + DAY_MS, firstLive))]
      await pipeline(Readable.from(chunks(lines)), copy)
      rows += lines.length
    }
    fleet.nextDay = new Date(day + DAY_MS).toISOString()
    await keep(file, fleet)
  }
  return rows
}

/** One line of COPY data for each heartbeat of the fleet between two times. */
export function* historyLines(fleet: Pick<Fleet, 'devices' | 'firstLiveAt'>, from: number, to: number) {
  const firstLive = Date.parse(fleet.firstLiveAt)
  for (const device of fleet.devices) {
    const end = Math.min(to, firstLive - offlineFor(device.number))
    // Devices do not send at the same second.
    const phase = noise(device.number, 0)
    const fullFrom = firstLive - (device.number % 20 === 1 ? DAY_MS : SAMPLE_MS) + phase * LIVE_INTERVAL_MS
    const next = (ts: number) =>
      ts >= fullFrom ? ts + LIVE_INTERVAL_MS : Math.min(ts + HISTORY_INTERVAL_MS, Math.max(fullFrom, ts + BUCKET_MS))
    for (let ts = from + phase * (from < fullFrom ? HISTORY_INTERVAL_MS : LIVE_INTERVAL_MS); ts < end; ts = next(ts)) {
      if (isOut(device.number, ts)) continue
      const beat = beatAt(device.number, ts)
      const receivedAt = ts + 40 + noise(device.number, ts) * 900
      yield (
        [
          new Date(ts).toISOString(),
          new Date(receivedAt).toISOString(),
          device.device_id,
          beat.signal_dbm,
          beat.battery_pct,
          beat.unity_running ? 't' : 'f',
          beat.network_type,
          beat.agent_version,
          `10.${device.number % 8}.${device.number >> 8}.${device.number & 255}`,
        ].join('\t') + '\n'
      )
    }
  }
}

function* chunks(lines: string[]) {
  for (let i = 0; i < lines.length; i += 500) yield lines.slice(i, i + 500).join('')
}

/** How long before the start of the demo a device went silent: 8 of the 200 have been silent for minutes to weeks. */
function offlineFor(number: number) {
  return number % 25 === 7 ? (15 + 1500 * noise(number, 1) ** 3 * 20) * 60_000 : 0
}

/** Now and then a device is offline for half an hour. */
function isOut(number: number, ts: number) {
  return noise(number, outageOf(number, ts) + 4) < 0.015
}

/** The number of the half hour that contains a time. Each device's half hours are shifted. */
function outageOf(number: number, ts: number) {
  return Math.floor(ts / OUTAGE_MS + number / 9)
}

/**
 * Fills in the fleet's counts of the last day. A thinned history does not show them, and nothing sampled the fleet while it was
 * loaded.
 */
async function loadTrend(sql: Sql, fleet: Fleet) {
  const firstLive = Date.parse(fleet.firstLiveAt)
  const samples = []
  for (let ts = Math.ceil((firstLive - DAY_MS) / SAMPLE_MS) * SAMPLE_MS; ts < Date.now(); ts += SAMPLE_MS) {
    const sample = { sampled_at: new Date(ts).toISOString(), online: 0, late: 0, offline: 0, unity_down: 0 }
    for (const { number } of fleet.devices) {
      const silent = silentFor(number, ts, firstLive)
      if (silent > 10 * 60_000) {
        sample.offline++
        continue
      }
      if (silent > 2 * 60_000) sample.late++
      else sample.online++
      if (!beatAt(number, ts).unity_running) sample.unity_down++
    }
    samples.push(sample)
  }
  await sql`
    insert into fleet.fleet_samples (sampled_at, devices, online, late, offline, new, clock_skewed, unity_down)
    select s.sampled_at, ${fleet.devices.length}::bigint, s.online, s.late, s.offline, 0, 0, s.unity_down
    from json_to_recordset(${JSON.stringify(samples)}::text::json)
      as s (sampled_at timestamptz, online bigint, late bigint, offline bigint, unity_down bigint)
    on conflict (sampled_at) do update
      set devices = excluded.devices, online = excluded.online, late = excluded.late, offline = excluded.offline, unity_down = excluded.unity_down
  `
}

/** How long a device had been silent at a time before the demo started. */
function silentFor(number: number, ts: number, firstLive: number) {
  if (offlineFor(number) > firstLive - ts) return offlineFor(number) - (firstLive - ts)
  let since = ts
  while (isOut(number, since)) since = Math.ceil((outageOf(number, since) - number / 9) * OUTAGE_MS) - 1
  return ts - since
}

/**
 * What a device reports at a time: a battery that is charged at night, a signal that varies, and Unity that is sometimes down.
 */
function beatAt(number: number, ts: number) {
  const hour = (ts / 3_600_000 + number / 9) % 24
  const day = Math.floor(ts / DAY_MS)
  const isDownForGood = number % 40 === 3
  const battery = hour < 6 ? 40 + hour * 10 : 100 - (hour - 6) * (3 + noise(number, 2))
  return {
    battery_pct: Math.round(Math.min(100, Math.max(4, battery))),
    network_type: noise(number, day) < 0.75 ? 'wifi' : 'lte',
    unity_running: !isDownForGood && noise(number, Math.floor(ts / 7_200_000)) > 0.01,
    signal_dbm: Math.round(-50 - 45 * noise(number, Math.floor(ts / 600_000))),
    agent_version: number % 10 === 0 ? '1.5.0-rc.1' : '1.4.2',
  }
}

/** A number from 0 to 1, always the same for the same device and time, so that history and live heartbeats fit together. */
function noise(number: number, moment: number) {
  let x = (number * 2_654_435_761 + Math.floor(moment / 1000) * 40_503 + Math.floor(moment) * 97) >>> 0
  x = Math.imul(x ^ (x >>> 16), 0x45d9f3b)
  x = Math.imul(x ^ (x >>> 16), 0x45d9f3b)
  return ((x ^ (x >>> 16)) >>> 0) / 2 ** 32
}

async function beatOn(url: string, device: DemoDevice, stopped: AbortSignal) {
  if (offlineFor(device.number)) return
  // Devices start at different seconds of the minute, as in a real fleet.
  await pause(noise(device.number, 3) * LIVE_INTERVAL_MS, stopped)
  while (!stopped.aborted) {
    const ts = new Date()
    const body = JSON.stringify({ ts: ts.toISOString(), ...beatAt(device.number, ts.getTime()) })
    const started = Date.now()
    const next = (await post(`${url}/v1/heartbeat`, device.token, body, stopped)) ?? LIVE_INTERVAL_MS
    await pause(next - (Date.now() - started), stopped)
  }
}

let complaints = 0

/** Returns after how many milliseconds the server asks for the next heartbeat. */
async function post(url: string, token: string, body: string, stopped: AbortSignal) {
  try {
    const answer = await fetch(url, {
      method: 'POST',
      headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json' },
      body,
      signal: AbortSignal.any([stopped, AbortSignal.timeout(20_000)]),
    })
    const text = await answer.text()
    if (!answer.ok) throw new Error(`the server answered ${answer.status} to a simulated heartbeat: ${text}`)
    complaints = 0
    return 1_000 * (JSON.parse(text) as { next_interval_s: number }).next_interval_s
  } catch (error) {
    // The next minute's heartbeat is the retry. Log only one line, because 200 devices fail at the same time.
    if (!stopped.aborted && complaints++ === 0) say(`demo: ${explain(error)}`)
    return undefined
  }
}

function pause(milliseconds: number, stopped: AbortSignal) {
  return new Promise<void>(resolve => {
    const end = () => {
      clearTimeout(timer)
      stopped.removeEventListener('abort', end)
      resolve()
    }
    const timer = setTimeout(end, Math.max(0, milliseconds))
    stopped.addEventListener('abort', end, { once: true })
    if (stopped.aborted) end()
  })
}

/** Writes a new file and renames it, so that a kill leaves the old one. It contains the tokens, so its mode is 0600. */
async function keep(file: string, fleet: Fleet) {
  await writeFile(`${file}.new`, `${JSON.stringify(fleet)}\n`, { mode: 0o600 })
  await rename(`${file}.new`, file)
}
