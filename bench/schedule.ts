// When each device of a simulated fleet sends.
import { generator } from '../testing/random.ts'

export interface Fleet {
  devices: number
  /** Seconds from one heartbeat of a device to its next, give or take up to `jitter`. */
  interval: number
  jitter: number
  /** Seconds. */
  duration: number
  /** Percent of the heartbeats that a device sends a second time, as after an answer that was lost. */
  retries: number
}

/** What is to be sent, in order of time; times in ms from the start. */
export interface Schedule {
  at: Float64Array
  device: Int32Array
  /** The heartbeat's own time: for a retry the first one's. */
  ts: Float64Array
  retried: number
}

/** A lost answer is noticed and the heartbeat sent again after so many ms; within its 10-second bucket in any case, since ts is the same. */
const RETRY_AFTER_MS = 500

/** The same fleet has the same schedule each time. */
export function schedule({ devices, interval, jitter, duration, retries }: Fleet): Schedule {
  const random = generator(42)
  const events: { at: number; device: number; ts: number }[] = []
  const end = duration * 1000
  let retried = 0
  for (let device = 0; device < devices; device++) {
    // Devices do not beat in step.
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

/** Heartbeats in the fullest second. */
export function peakRate({ at }: Schedule) {
  const seconds = new Map<number, number>()
  for (const time of at) seconds.set(Math.floor(time / 1000), (seconds.get(Math.floor(time / 1000)) ?? 0) + 1)
  return Math.max(0, ...seconds.values())
}
