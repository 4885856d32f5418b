// Which addresses messages may be sent to. Somebody who may create a webhook chooses the URL, and must not reach with
// it what only this machine reaches: other services of the network, or the metadata of a cloud, which has credentials.
import { BlockList, isIP, isIPv4, isIPv6 } from 'node:net'

/** Receivers that are allowed although they are not public. */
export interface Allowed {
  /** Names of hosts in lower case. */
  hosts: ReadonlySet<string>
  networks: BlockList
}

/** Special-purpose IPv4 networks (IANA registry), and the metadata service of Azure, which has a public address. */
const NOT_PUBLIC_V4 = [
  '0.0.0.0/8',
  '10.0.0.0/8',
  '100.64.0.0/10',
  '127.0.0.0/8',
  '168.63.129.16/32',
  '169.254.0.0/16',
  '172.16.0.0/12',
  '192.0.0.0/24',
  '192.0.2.0/24',
  '192.88.99.0/24',
  '192.168.0.0/16',
  '198.18.0.0/15',
  '198.51.100.0/24',
  '203.0.113.0/24',
  '224.0.0.0/4',
  '240.0.0.0/4',
]
/** Of IPv6 only global unicast is public, without what is special in it: Teredo, 6to4, documentation and so on. */
const PUBLIC_V6 = '2000::/3'
const NOT_PUBLIC_V6 = ['2001::/23', '2001:db8::/32', '2002::/16', '3fff::/20', '5f00::/16']
/** An IPv4 address in the last 32 bits: mapped, compatible, and translated by NAT64. */
const EMBEDDED_V4 = ['::ffff:0:0/96', '::/96', '64:ff9b::/96']

const notPublic = listOf(NOT_PUBLIC_V4.concat(NOT_PUBLIC_V6))
const publicV6 = listOf([PUBLIC_V6])
const embedded = listOf(EMBEDDED_V4)

/** Reads WEBHOOK_ALLOW. */
export function readAllowed(text: string): Allowed & { problems: string[] } {
  const hosts = new Set<string>()
  const networks = new BlockList()
  const problems: string[] = []
  for (const entry of text.split(/[\s,]+/).filter(Boolean)) {
    const address = entry.replace(/^\[(.*)\]$/, '$1')
    if (isIP(address)) networks.addAddress(address, familyOf(address))
    else if (isNetwork(entry)) addNetwork(networks, entry)
    else if (/^[a-z0-9_]([a-z0-9_.-]*[a-z0-9])?$/i.test(entry) && !/^[\d.]+$/.test(entry)) hosts.add(entry.toLowerCase())
    else problems.push(`expected names of hosts, addresses or networks such as 10.0.0.0/8, got ${JSON.stringify(entry)}`)
  }
  return { hosts, networks, problems }
}

/**
 * Why nothing is sent to an address; undefined if it may be.
 * @param host the name in the URL, or the address itself
 */
export function addressProblem(address: string, host: string, { hosts, networks }: Allowed): string | undefined {
  if (hosts.has(host.toLowerCase()) || isIn(networks, address) || isPublic(address)) return undefined
  // By the name only: readers of the database see this, and need not know the addresses of our network.
  return `${host} is not a public address; if that is meant, name it in WEBHOOK_ALLOW of the notifier`
}

/** Whether everybody on the internet can reach this address. */
export function isPublic(address: string): boolean {
  if (isIPv4(address)) return !isIn(notPublic, address)
  // The zone of a link-local address is not part of it.
  if (!isIPv6(address) || address.includes('%')) return false
  const inside = embeddedV4(address)
  if (inside !== undefined) return isPublic(inside)
  return isIn(publicV6, address) && !isIn(notPublic, address)
}

/** The IPv4 address that this IPv6 address stands for. */
function embeddedV4(address: string) {
  if (!isIn(embedded, address)) return undefined
  const groups = /^\[(.*)\]$/.exec(new URL(`http://[${address}]`).hostname)![1]!.split(':')
  // The URL writes the last 32 bits as two groups, of which those that are 0 may be left out.
  const [high, low] = groups.slice(-2).map(group => Number.parseInt(group || '0', 16))
  return [high! >> 8, high! & 255, low! >> 8, low! & 255].join('.')
}

function isIn(list: BlockList, address: string) {
  const inside = isIPv6(address) && list !== embedded ? embeddedV4(address) : undefined
  return list.check(address, familyOf(address)) || (inside !== undefined && list.check(inside, 'ipv4'))
}

function isNetwork(text: string) {
  const [, address = '', bits = ''] = /^(.+)\/(\d{1,3})$/.exec(text) ?? []
  return isIP(address) !== 0 && Number(bits) <= (isIPv4(address) ? 32 : 128)
}

function addNetwork(list: BlockList, network: string) {
  const [address = '', bits = ''] = network.split('/')
  list.addSubnet(address, Number(bits), familyOf(address))
}

function listOf(networks: string[]) {
  const list = new BlockList()
  for (const network of networks) addNetwork(list, network)
  return list
}

function familyOf(address: string) {
  return isIPv4(address) ? 'ipv4' : 'ipv6'
}
