import type { IncomingMessage } from 'node:http'
import t from 'tap'
import { clientAddress, networkOf } from './address.ts'

function from(remoteAddress: string | undefined, forwarded?: string) {
  return {
    socket: { remoteAddress },
    headers: forwarded === undefined ? {} : { 'x-forwarded-for': forwarded },
  } as unknown as IncomingMessage
}

t.test('without a trusted proxy only the address of the socket counts', async t => {
  t.equal(clientAddress(from('203.0.113.9', '198.51.100.1'), false), '203.0.113.9')
  t.equal(clientAddress(from('::ffff:203.0.113.9'), false), '203.0.113.9')
  t.equal(clientAddress(from('fe80::1%eth0'), false), 'fe80::1')
  t.equal(clientAddress(from(undefined), false), null)
})

t.test('behind a trusted proxy the last hop counts, which that proxy wrote', async t => {
  t.equal(clientAddress(from('127.0.0.1', '198.51.100.1, 203.0.113.9'), true), '203.0.113.9')
  t.equal(clientAddress(from('127.0.0.1'), true), '127.0.0.1')
  t.equal(clientAddress(from('127.0.0.1', 'unknown'), true), null)
})

t.test('an address is read in every form in which proxies write it', async t => {
  const forms = {
    '203.0.113.7:51008': '203.0.113.7',
    '203.0.113.7:': '203.0.113.7',
    '"203.0.113.7"': '203.0.113.7',
    '"203.0.113.7:51008"': '203.0.113.7',
    '[203.0.113.7]:80': '203.0.113.7',
    '\t203.0.113.7 ': '203.0.113.7',
    '2001:db8::1': '2001:db8::1',
    '2001:DB8::1': '2001:DB8::1',
    '[2001:db8::1]': '2001:db8::1',
    '[2001:db8::1]:443': '2001:db8::1',
    '"[2001:db8::1]:443"': '2001:db8::1',
    '"2001:db8::1"': '2001:db8::1',
    '2001:db8:0:0:0:0:0:1:51008': '2001:db8:0:0:0:0:0:1',
    '2001:db8::1:443': '2001:db8::1:443',
    'fe80::1%eth0': 'fe80::1',
    '[fe80::1%25eth0]:443': 'fe80::1',
    '"[fe80::1%eth0]"': 'fe80::1',
    'fe80:0:0:0:0:0:0:1%eth0:443': 'fe80:0:0:0:0:0:0:1',
    '::ffff:203.0.113.7': '203.0.113.7',
    '[::FFFF:203.0.113.7]:51008': '203.0.113.7',
    '::ffff:cb00:7107': '203.0.113.7',
    '0:0:0:0:0:ffff:203.0.113.7': '203.0.113.7',
    '::ffff:0:cb00:7107': '::ffff:0:cb00:7107',
    '::ffff': '::ffff',
    '::1': '::1',
  }
  for (const [written, read] of Object.entries(forms)) {
    t.equal(clientAddress(from('127.0.0.1', written), true), read, written)
    t.equal(clientAddress(from('127.0.0.1', `198.51.100.1:5, ${written}`), true), read, `${written} as the last hop`)
    t.equal(clientAddress(from('127.0.0.1', `${written}, `), true), read, `${written} before a trailing comma`)
  }
})

t.test('text that is not an address gives null', async t => {
  const none = [
    '',
    ',',
    'unknown',
    '_hidden:80',
    '-',
    'localhost:80',
    '203.0.113',
    '203.0.113.256:80',
    '203.0.113.7:80:90',
    '203.0.113.7:http',
    '[2001:db8::1',
    '2001:db8::1]:443',
    '[]:443',
    '[2001:db8::1]443',
    '2001:db8:0:0:0:0:0:0:1:51008',
    '"',
    '""',
    'for=203.0.113.7',
    '1.2.3.4 5.6.7.8',
  ]
  for (const written of none) t.equal(clientAddress(from('127.0.0.1', written), true), null, written)
})

t.test('clients behind one proxy are told apart by their own networks', async t => {
  const network = (written: string) => networkOf(clientAddress(from('127.0.0.1', written), true))
  t.equal(network('203.0.113.7:51008'), network('203.0.113.7:40000'))
  t.not(network('203.0.113.7:51008'), network('203.0.113.8:51008'))
  t.equal(network('[2001:db8:1:2::1]:443'), network('2001:db8:1:2::9'))
  t.not(network('[2001:db8:1:2::1]:443'), network('[2001:db8:1:3::1]:443'))
  t.equal(network('::ffff:cb00:7107'), '203.0.113.7')
})
