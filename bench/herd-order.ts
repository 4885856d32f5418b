// What the process that sends as a herd is told, and what it reports.

export interface HerdOrder {
  port: number
  connections: number
  /** All of them are due at the same time. */
  devices: number
  /** The interval of every device, in seconds. */
  interval: number
  /** Each waits up to so many seconds longer or shorter than it was asked to. */
  jitter: number
  /** How many heartbeats each has kept, an interval apart, and sends together with the first one. */
  kept: number
  /** Whether a device waits for next_interval_s. Otherwise it waits for its interval, as if the answer were always the same. */
  obeys: boolean
  /** How long requests become due, in seconds. */
  seconds: number
}

export interface HerdReport {
  /** Requests that became due in each second. One that is sent again counts once. */
  offered: Int32Array
  /** Until the last device had its first answer, in seconds. */
  drained: number
  /** The least and the most seconds from an answer to the next request of the device. */
  waits: { least: number; most: number }
  answered: number
  /** Requests that were sent again, and why. */
  retries: number
  problems: Record<string, number>
  /** Requests that waited for a connection of the sender for more than a second, after the first ones were answered. */
  delayed: number
  cpuSeconds: number
}
