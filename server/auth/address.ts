import type { IncomingMessage } from 'node:http'
import { isIP, isIPv4, isIPv6 } from 'node:net'

/**
 * The client's address in a form that PostgreSQL's inet accepts, or null. Behind a trusted proxy it is the last hop of
 * X-Forwarded-For, which our own proxy wrote. The hops before it are only what the client claims.
 */
export function clientAddress(incoming: IncomingMessage, trustProxy: boolean): string | null {
  const forwarded = trustProxy ? incoming.headers['x-forwarded-for'] : undefined
  return readAddress(forwarded === undefined ? (incoming.socket.remoteAddress ?? '') : lastHop(String(forwarded)))
}

function lastHop(forwarded: string) {
  // A trailing comma adds no hop.
  const list = forwarded.replace(/[\s,]+$/, '')
  return list.slice(list.lastIndexOf(',') + 1)
}

/**
 * The address in one entry of X-Forwarded-For, in every form that proxies write: alone, with a port (`203.0.113.7:51008` by
 * Azure's gateways, `[2001:db8::1]:443`), in brackets, in quotes, or with the zone of a link-local address. Null if there is
 * none.
 */
function readAddress(entry: string): string | null {
  if (isIPv4(entry)) return entry
  let text = entry
    .trim()
    .replace(/^"(.*)"$/, '$1')
    .trim()
  const inBrackets = /^\[([^\]]*)\](?::\d*)?$/.exec(text)
  if (inBrackets !== null) text = inBrackets[1]!
  // Without brackets, a port is recognized by what precedes it: an IPv4 address, or all eight groups of an IPv6 address.
  else text = text.replace(/^([\d.]+|(?:[\da-f]{1,4}:){7}[\da-f]{1,4}(?:%[^:]*)?):\d*$/i, '$1')
  text = text.replace(/%.*$/, '')
  if (isIP(text) === 0) return null
  return isIPv6(text) ? unmapped(text) : text
}

/**
 * On a dual-stack socket an IPv4 client has an IPv6 address such as `::ffff:203.0.113.7` or `::ffff:cb00:7107`. This returns its
 * IPv4 address.
 */
function unmapped(address: string) {
  if (!/^[0:]+:ffff:/i.test(address)) return address
  const mapped = /^\[::ffff:([\da-f]+):([\da-f]+)\]$/.exec(new URL(`http://[${address}]`).hostname)
  if (mapped === null) return address
  const bytes = Buffer.alloc(4)
  bytes.writeUInt16BE(Number.parseInt(mapped[1]!, 16), 0)
  bytes.writeUInt16BE(Number.parseInt(mapped[2]!, 16), 2)
  return bytes.join('.')
}

/** The network to which rate limits apply. An IPv6 client can choose its address from a whole /64. */
export function networkOf(address: string | null) {
  if (address === null || !isIPv6(address)) return address ?? 'unknown'
  const [head = '', tail] = address.split('::')
  const groups = head.split(':').filter(Boolean)
  if (tail !== undefined) {
    const rest = tail.split(':').filter(Boolean)
    while (groups.length + rest.length < 8) groups.push('0')
    groups.push(...rest)
  }
  return groups
    .slice(0, 4)
    .map(group => Number.parseInt(group, 16).toString(16))
    .join(':')
}
