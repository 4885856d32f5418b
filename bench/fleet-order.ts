// What the process that sends as a fleet is told, and what it reports.

/** What is before the number of a device, or of a gateway, in its token. */
export const DEVICE_TOKEN = 'nxd_'
export const GATEWAY_TOKEN = 'nxg_'
/** The number of a device or gateway in its token, in hex, is this long. */
export const TOKEN_DIGITS = 64

export const ACKNOWLEDGED = 1
export const LOST = 2

/** The heartbeats of a batch are this many ms apart. The newest is as old as the batch. */
export const ITEM_MS = 50

/** Devices 1 to `singles` send for themselves. The ones after them belong to gateways, `batch` to each. */
export interface FleetOrder {
  port: number
  connections: number
  singles: number
  gateways: number
  batch: number
  /** Seconds from one request of a device or gateway to the next, plus or minus up to `jitter`. 0: all are due at once. */
  interval: number
  jitter: number
  /** How long requests become due, in seconds. */
  seconds: number
  /** Seconds after which a request is lost. */
  patience: number
}

export type Order =
  | ({ kind: 'send' } & FleetOrder)
  /** What is due from now on counts in the next part. */
  | { kind: 'part'; name: string }

export interface Latency {
  p50: number
  p99: number
  p999: number
  max: number
}

/** Counts are of heartbeats, not requests. Times are in ms. */
export interface FleetReport {
  kind: 'done'
  /** When the first request could be due, in ms since 1970. */
  startedAt: number
  /** Each request: when it was due, in ms after startedAt, and who sent it: 0 to singles - 1, then the gateways. */
  due: Int32Array
  unit: Int32Array
  /** Whether each request was ACKNOWLEDGED or LOST. */
  state: Uint8Array
  /** Items of acknowledged batches that were not: the request and the position in its batch. */
  refused: { request: number; item: number }[]
  acknowledged: number
  /** Acknowledged as duplicates: an earlier attempt was stored, but its answer was lost. */
  duplicates: number
  lost: number
  /** Requests that were sent again, and why. */
  retries: number
  problems: Record<string, number>
  /** Heartbeats acknowledged in each second after startedAt. */
  perSecond: Int32Array
  parts: { name: string; seconds: number; offered: number; latency: Latency }[]
  /** How late the sender itself looked at a request that was due. */
  senderDelay: Latency
  /** From the first request to the last answer. */
  seconds: number
  cpuSeconds: number
}
