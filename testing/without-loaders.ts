// npm test gives this to Node before tap: tap counts coverage with a module loader in each test file, which costs more CPU than all
// imports of the file. Nothing here uses it. See bench/RESULTS.md, "npm test".
import module from 'node:module'

Object.assign(module, { register: () => {} })
