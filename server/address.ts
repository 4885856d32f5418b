import type { IncomingMessage } from 'node:http'
import { isIP, isIPv6 } from 'node:net'

/**
 * The client's address as PostgreSQL's inet takes it, or null. Behind a proxy it is the last hop of
 * X-Forwarded-For: the one our own proxy wrote; those before it are the client's word.
 */
export function clientAddress(incoming: IncomingMessage, trustProxy: boolean): string | null {
  const forwarded = trustProxy ? incoming.headers['x-forwarded-for'] : undefined
  const hop = forwarded === undefined ? incoming.socket.remoteAddress : String(forwarded).split(',').at(-1)!.trim()
  if (hop === undefined) return null
  // An IPv4 client of a dual-stack socket, and the zone of a link-local address.
  const address = hop.replace(/^::ffff:(?=\d+\.)/i, '').replace(/%.*$/, '')
  return isIP(address) === 0 ? null : address
}

/** What to hold against whom: an IPv6 client has a whole /64 to choose its addresses from. */
export function networkOf(address: string | null) {
  if (address === null || !isIPv6(address)) return address ?? 'unknown'
  const [head = '', tail] = address.split('::')
  const groups = head.split(':').filter(Boolean)
  if (tail !== undefined) {
    const rest = tail.split(':').filter(Boolean)
    while (groups.length + rest.length < 8) groups.push('0')
    groups.push(...rest)
  }
  return groups.slice(0, 4).map(group => Number.parseInt(group, 16).toString(16)).join(':')
}
