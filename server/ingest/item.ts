import type { Heartbeat } from './heartbeat.ts'

/** RFC 3339 in UTC, as most agents write it, on a real day. 29 February is left to the schema. */
const UTC =
  /^[12]\d{3}-(?:(?:0[1-9]|1[0-2])-(?:0[1-9]|1\d|2[0-8])|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31)T(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,9})?Z$/
/** Text that JSON quotes without escapes. */
const PLAIN = /^[\w .:,()+/-]*$/

/**
 * A heartbeat as an item of fleet.ingest's JSON.
 * @param tail what itemTail() returned for the client's address
 */
export function itemText(beat: Heartbeat, deviceId: number, tail: string) {
  const { ts, battery_pct, network_type, unity_running, signal_dbm, agent_version } = beat
  const fields = JSON.stringify({ ts, battery_pct, network_type, unity_running, signal_dbm, agent_version })
  return `{"device_id":${deviceId}${fields === '{}' ? '' : `,${fields.slice(1, -1)}`}${tail}`
}

export function itemTail(ip: string | null) {
  return ip === null ? '}' : `,"ip":"${ip}"}`
}

/**
 * The fast path for what agents nearly always send, without the schema and without a copy. It takes a third of the time, and
 * leaves less to the garbage collector. Undefined for everything else, right or wrong: the schema judges that.
 */
export function plainItemText(value: unknown, deviceId: unknown, tail: string): string | undefined {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return undefined
  if (typeof deviceId !== 'number' || !Number.isSafeInteger(deviceId) || deviceId <= 0) return undefined
  const { ts, battery_pct, network_type, unity_running, signal_dbm, agent_version } = value as Record<string, unknown>
  let text = `{"device_id":${deviceId}`
  if (ts !== undefined && ts !== null) {
    if (typeof ts !== 'string' || !UTC.test(ts)) return undefined
    text += `,"ts":"${ts}"`
  }
  if (battery_pct !== undefined && battery_pct !== null) {
    if (!isWithin(battery_pct, 0, 100)) return undefined
    text += `,"battery_pct":${battery_pct}`
  }
  if (network_type !== undefined && network_type !== null) {
    if (!isPlain(network_type, 32)) return undefined
    text += `,"network_type":"${network_type}"`
  }
  if (unity_running !== undefined && unity_running !== null) {
    if (typeof unity_running !== 'boolean') return undefined
    text += `,"unity_running":${unity_running}`
  }
  if (signal_dbm !== undefined && signal_dbm !== null) {
    if (!isWithin(signal_dbm, -200, 50)) return undefined
    text += `,"signal_dbm":${signal_dbm}`
  }
  if (agent_version !== undefined && agent_version !== null) {
    if (!isPlain(agent_version, 64)) return undefined
    text += `,"agent_version":"${agent_version}"`
  }
  return text + tail
}

function isWithin(value: unknown, min: number, max: number): value is number {
  return typeof value === 'number' && Number.isInteger(value) && value >= min && value <= max
}

function isPlain(value: unknown, max: number): value is string {
  return typeof value === 'string' && value.length <= max && PLAIN.test(value)
}
