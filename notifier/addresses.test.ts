import t from 'tap'
import { addressProblem, isPublic, readAllowed } from './addresses.ts'

const NOT_PUBLIC = {
  'this machine': ['127.0.0.1', '127.255.255.254', '::1', '0.0.0.0', '::', '0.1.2.3'],
  private: ['10.0.0.1', '10.255.255.255', '172.16.0.1', '172.31.255.255', '192.168.0.1', 'fc00::1', 'fd12:3456::1'],
  'link-local, with the metadata of clouds': ['169.254.0.1', '169.254.169.254', 'fe80::1', 'febf::1', 'fe80::1%eth0', 'fec0::1'],
  'other metadata': ['168.63.129.16', '100.100.100.200', '192.0.0.192', 'fd00:ec2::254'],
  'carrier-grade NAT': ['100.64.0.1', '100.127.255.255'],
  'multicast and broadcast': ['224.0.0.1', '239.255.255.255', '255.255.255.255', 'ff02::1', 'ff0e::1'],
  reserved: ['240.0.0.1', '192.0.0.1', '198.18.0.1', '198.19.255.255', '192.88.99.1', '100::1', '5f00::1'],
  documentation: ['192.0.2.1', '198.51.100.1', '203.0.113.1', '2001:db8::1', '3fff::1'],
  'IPv4 in IPv6': [
    '::ffff:127.0.0.1',
    '::ffff:7f00:1',
    '0:0:0:0:0:ffff:10.0.0.1',
    '::ffff:169.254.169.254',
    '::ffff:0:0',
    '::127.0.0.1',
    '64:ff9b::10.0.0.1',
    '64:ff9b::a9fe:a9fe',
    '64:ff9b:1::10.0.0.1',
  ],
  'tunnels, which end somewhere else': ['2002:7f00:1::1', '2002:a00:1::', '2001::1', '2001:0:7f00:1::1'],
  'no address': ['', 'localhost', '127.1', '0x7f000001', '1.2.3.4.5'],
}

for (const [kind, addresses] of Object.entries(NOT_PUBLIC)) {
  t.test(`not public: ${kind}`, async t => {
    for (const address of addresses) t.equal(isPublic(address), false, address)
  })
}

t.test('everything else is public', async t => {
  for (const address of [
    '1.1.1.1',
    '9.255.255.255',
    '11.0.0.0',
    '100.63.255.255',
    '100.128.0.0',
    '126.255.255.255',
    '128.0.0.0',
    '169.253.255.255',
    '172.15.255.255',
    '172.32.0.0',
    '192.167.255.255',
    '223.255.255.255',
    '2606:4700::1111',
    '2a00:1450:4001::200e',
    '2001:4860:4860::8888',
    '::ffff:8.8.8.8',
    '64:ff9b::808:808',
  ])
    t.equal(isPublic(address), true, address)
})

t.test('WEBHOOK_ALLOW names hosts, addresses and networks', async t => {
  const allowed = readAllowed(' Alertmanager.internal,10.1.0.0/16  192.168.7.7,fd00::/8,[::1] ,')
  t.same(allowed.problems, [])
  for (const address of ['10.1.2.3', '192.168.7.7', 'fd00::7', '::1', '::ffff:10.1.2.3', '64:ff9b::10.1.2.3', '8.8.8.8'])
    t.equal(addressProblem(address, 'x.example', allowed), undefined, address)
  for (const address of ['10.2.0.1', '192.168.7.8', 'fc00::1', '127.0.0.1', '::ffff:10.2.0.1', '169.254.169.254'])
    t.match(addressProblem(address, 'x.example', allowed), 'x.example is not a public address; ', address)
  t.equal(addressProblem('10.9.9.9', 'alertmanager.INTERNAL', allowed), undefined, 'a name has any address')
  t.match(addressProblem('10.9.9.9', 'my-alertmanager.internal', allowed), /WEBHOOK_ALLOW/, 'another name has not')
  t.match(addressProblem('127.0.0.1', '127.0.0.1', readAllowed('')), /^127.0.0.1 is not a public address/)
  for (const wrong of ['10.0.0.0/33', '10.0.0/8', '::/129', 'http://x', 'a:80', '300.1.1.1', '*', '*.internal', 'a/b'])
    t.match(readAllowed(`x,${wrong}`).problems, [`got ${JSON.stringify(wrong)}`], wrong)
})
