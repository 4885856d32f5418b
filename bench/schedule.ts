// Computes when each device of a simulated fleet sends.
import { generator } from '../testing/random.ts'

export interface Fleet {
  devices: number
  /** Seconds from one heartbeat of a device to the next, plus or minus up to `jitter`. */
  interval: number
  jitter: number
  /** In seconds. */
  duration: number
  /** The percentage of heartbeats that a device sends a second time, as after an answer that was lost. */
  retries: number
}

/** What to send, in order of time. Times are in ms from the start. */
export interface Schedule {
  at: Float64Array
  device: Int32Array
  /** The heartbeat's own time. For a retry it is the time of the first attempt. */
  ts: Float64Array
  retried: number
}

/**
 * A device sends a heartbeat again this many ms after the first attempt, whose answer was lost. Its `ts` is the same, so it is
 * always in the same 10-second bucket.
 */
const RETRY_AFTER_MS = 500

/** Makes the schedule of a fleet. It is always the same for the same fleet. */
export function schedule({ devices, interval, jitter, duration, retries }: Fleet): Schedule {
  const random = generator(42)
  const events: { at: number; device: number; ts: number }[] = []
  const end = duration * 1000
  let retried = 0
  for (let device = 0; device < devices; device++) {
    // Devices do not send at the same second.
    for (let at = random() * interval * 1000; at < end; at += (interval + (2 * random() - 1) * jitter) * 1000) {
      events.push({ at, device, ts: at })
      if (random() * 100 < retries && at + RETRY_AFTER_MS < end) {
        events.push({ at: at + RETRY_AFTER_MS, device, ts: at })
        retried++
      }
    }
  }
  events.sort((a, b) => a.at - b.at)
  return {
    at: Float64Array.from(events, event => event.at),
    device: Int32Array.from(events, event => event.device),
    ts: Float64Array.from(events, event => event.ts),
    retried,
  }
}

/** The number of heartbeats in the fullest second. */
export function peakRate({ at }: Schedule) {
  const seconds = new Map<number, number>()
  for (const time of at) seconds.set(Math.floor(time / 1000), (seconds.get(Math.floor(time / 1000)) ?? 0) + 1)
  return Math.max(0, ...seconds.values())
}
