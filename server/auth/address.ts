import type { IncomingMessage } from 'node:http'
import { isIP, isIPv4, isIPv6 } from 'node:net'

/**
 * The client's address as PostgreSQL's inet takes it, or null. Behind a proxy it is the last hop of
 * X-Forwarded-For: the one our own proxy wrote; those before it are the client's word.
 */
export function clientAddress(incoming: IncomingMessage, trustProxy: boolean): string | null {
  const forwarded = trustProxy ? incoming.headers['x-forwarded-for'] : undefined
  return readAddress(forwarded === undefined ? (incoming.socket.remoteAddress ?? '') : lastHop(String(forwarded)))
}

function lastHop(forwarded: string) {
  // A trailing comma adds nobody to the list.
  const list = forwarded.replace(/[\s,]+$/, '')
  return list.slice(list.lastIndexOf(',') + 1)
}

/**
 * The address in one entry of X-Forwarded-For, in each form that proxies write: alone, with a port (`203.0.113.7:51008` by Azure's
 * gateways, `[2001:db8::1]:443`), in brackets, in quotes, with the zone of a link-local address. Null when there is none.
 */
function readAddress(entry: string): string | null {
  if (isIPv4(entry)) return entry
  let text = entry
    .trim()
    .replace(/^"(.*)"$/, '$1')
    .trim()
  const inBrackets = /^\[([^\]]*)\](?::\d*)?$/.exec(text)
  if (inBrackets !== null) text = inBrackets[1]!
  // Without brackets a port is known by what is before it: an IPv4 address, or all eight groups of an IPv6 one.
  else text = text.replace(/^([\d.]+|(?:[\da-f]{1,4}:){7}[\da-f]{1,4}(?:%[^:]*)?):\d*$/i, '$1')
  text = text.replace(/%.*$/, '')
  if (isIP(text) === 0) return null
  return isIPv6(text) ? unmapped(text) : text
}

/** An IPv4 client of a dual-stack socket is that IPv4 address, however it is written: `::ffff:203.0.113.7`, `::ffff:cb00:7107`. */
function unmapped(address: string) {
  if (!/^[0:]+:ffff:/i.test(address)) return address
  const mapped = /^\[::ffff:([\da-f]+):([\da-f]+)\]$/.exec(new URL(`http://[${address}]`).hostname)
  if (mapped === null) return address
  const bytes = Buffer.alloc(4)
  bytes.writeUInt16BE(Number.parseInt(mapped[1]!, 16), 0)
  bytes.writeUInt16BE(Number.parseInt(mapped[2]!, 16), 2)
  return bytes.join('.')
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
  return groups
    .slice(0, 4)
    .map(group => Number.parseInt(group, 16).toString(16))
    .join(':')
}
