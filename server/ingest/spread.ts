/** The golden ratio less one. Its multiples, without their whole part, are spread evenly, however many there are. */
const GOLDEN = (Math.sqrt(5) - 1) / 2

/** Two heartbeats of a device in the same ten seconds would be duplicates. */
const BUCKET_S = 10

/**
 * How many seconds an answer varies around the moment of the device. When the server pauses for a moment, the answers that it then
 * gives at once would otherwise bring their devices back at once, because whole seconds do not correct less than half of one.
 */
const VARIES_S = 2

/**
 * In how many seconds to ask a device for its next heartbeat, so that the devices of a fleet do not all send in the same second: in
 * each interval, by the server's clock, each device has a moment of its own, and this is the time until that moment.
 *
 * The answer is never so long that a device which obeys it becomes late, even if it sends a quarter of its interval later than it was
 * asked to: fleet.late_after() is 1.5 intervals and 15 s. Small differences are corrected at once too, which was measured to give
 * the flattest load, with and without jitter (docs/decisions/0050).
 * @param intervalS the interval of the device, in seconds
 * @param now in milliseconds since 1970
 * @param random from 0 to 1
 * @returns whole seconds, between 0.25 and 1.4 intervals (1.5 if it is shorter than 25 s); the interval itself if it is shorter than
 * 20 s
 */
export function spread(deviceId: number, intervalS: number, now: number, random = Math.random()) {
  // A short interval leaves no room: the next heartbeat would be in the same bucket.
  if (intervalS < 2 * BUCKET_S) return intervalS
  const longest = Math.min(1.4 * intervalS, 1.25 * intervalS + 10)
  const least = Math.max(longest - intervalS, BUCKET_S)
  const moment = ((deviceId * GOLDEN) % 1) * intervalS + (2 * random - 1) * VARIES_S
  const wait = moment - ((now / 1000) % intervalS) - least
  return Math.round(least + wait - Math.floor(wait / intervalS) * intervalS)
}
