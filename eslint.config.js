import js from '@eslint/js'
import { createNodeResolver, importX } from 'eslint-plugin-import-x'
import tseslint from 'typescript-eslint'
import noImportCycle from './testing/no-import-cycle.js'

const SYNTAX = [
  {
    selector: 'Property[key.name="shell"]:not([value.value=false])',
    message: 'Run the program itself, with a list of arguments.',
  },
  {
    selector: 'ArrayExpression > Literal[value=/^-[a-z]*c$/] + :matches(TemplateLiteral[expressions.length>0], BinaryExpression)',
    message: "Give a shell what varies as arguments: ['-c', '… \"$1\"', 'sh', value].",
  },
  {
    selector:
      'BinaryExpression[operator=/^[!=]==?$/][right.type!="Literal"]:not([right.type="Identifier"][right.name="undefined"])' +
      ' > :matches(Identifier[name="adminKey"], MemberExpression[property.name="adminKey"])',
    message: 'Compare the key by keyCheck(), which tells nothing by the time it takes.',
  },
]

// A value that is written in the code at the top of a file: a literal, a product of literals, or a list or set of values.
const VALUES = [
  'Literal.init',
  'TemplateLiteral.init[expressions.length=0]',
  'BinaryExpression.init[operator=/[*]/]',
  'ArrayExpression.init:has(> Literal)',
  'TSAsExpression.init:has(> ArrayExpression)',
  'NewExpression.init[callee.name="Set"]',
]
const NAMES = ['Program >', 'Program > ExportNamedDeclaration >'].map(place => ({
  selector: `${place} VariableDeclaration[kind="const"] > VariableDeclarator[id.name=/^[a-z]/] > :matches(${VALUES.join(', ')})`,
  message: 'Write the name of a constant value in SCREAMING_SNAKE_CASE, with its unit at the end.',
}))

const OPEN = 'Open it with lib/database.ts or server/database.ts, which set a fixed search path.'
const CONNECTIONS = [
  { selector: 'CallExpression[callee.name="postgres"]', message: OPEN },
  { selector: 'ImportDeclaration[source.value="postgres"] > ImportDefaultSpecifier[local.name!="postgres"]', message: OPEN },
  { selector: 'ImportDeclaration[source.value="postgres"] > ImportNamespaceSpecifier', message: OPEN },
  { selector: 'ImportDeclaration[source.value="postgres"] > ImportSpecifier[imported.name="default"]', message: OPEN },
  { selector: 'ImportDeclaration[source.value="pg"]', message: OPEN },
]

/**
 * What each directory may import besides itself and packages: a directory, or one file of it. Its *.test.ts files, testing/ and bench/ import
 * what they need. So production code never imports testing/, and server, archiver and notifier never import each other.
 */
const MAY_IMPORT = {
  lib: [],
  server: ['lib'],
  archiver: ['lib'],
  notifier: ['lib'],
  // The generated pages of docs/ show what the server has.
  cli: ['lib', 'local', 'server'],
  // It judges the settings of the processes that it starts, and migrates.
  local: ['lib', 'cli/migrate.ts', 'server/config.ts', 'archiver/config.ts', 'notifier/config.ts'],
  docker: ['lib', 'archiver/config.ts'],
}
const DIRECTORIES = Object.keys(MAY_IMPORT)
const ZONES = Object.entries(MAY_IMPORT).map(([directory, others]) => ({
  target: `./${directory}`,
  from: '.',
  except: [directory, ...others, 'node_modules'].map(path => `./${path}`),
  message: `${directory}/ may import ${[directory, ...others].join(', ')}; see MAY_IMPORT in eslint.config.js.`,
}))

export default tseslint.config(
  { ignores: ['node_modules', 'build', '.local', '.tap', 'migrations'] },
  js.configs.recommended,
  ...tseslint.configs.recommendedTypeChecked,
  {
    languageOptions: {
      parserOptions: {
        projectService: { allowDefaultProject: ['eslint.config.js'] },
        tsconfigRootDir: import.meta.dirname,
      },
    },
    rules: {
      // Style: only config.ts reads the environment.
      'no-restricted-properties': ['error', { object: 'process', property: 'env', message: 'Read settings in config.ts.' }],
      // What is run gets its arguments as a list; a shell would read them as its language.
      'no-restricted-imports': [
        'error',
        {
          paths: [
            {
              name: 'node:child_process',
              importNames: ['exec', 'execSync', 'default'],
              message: 'It asks a shell. Use spawn or execFile with a list.',
            },
            { name: 'child_process', message: 'Import it from node:child_process.' },
          ],
        },
      ],
      'no-restricted-syntax': ['error', ...SYNTAX, ...NAMES, ...CONNECTIONS],
      // Hono handlers and tap callbacks may be async without awaiting.
      '@typescript-eslint/require-await': 'off',
      '@typescript-eslint/restrict-template-expressions': ['error', { allowNumber: true, allowBoolean: true }],
    },
  },
  {
    files: DIRECTORIES.map(directory => `${directory}/**/*.{ts,tsx}`),
    plugins: { 'import-x': importX, local: { rules: { 'no-import-cycle': noImportCycle } } },
    settings: { 'import-x/resolver-next': [createNodeResolver({ extensions: ['.ts', '.tsx', '.js'] })] },
    rules: {
      'local/no-import-cycle': 'error',
      'import-x/no-restricted-paths': ['error', { basePath: import.meta.dirname, zones: ZONES }],
    },
  },
  {
    // The files that open connections, and tests and benchmarks, which use their own databases and open them in many ways.
    files: ['lib/database.ts', 'server/database.ts', '**/*.test.ts', 'testing/**/*.ts', 'bench/**/*.ts'],
    rules: { 'no-restricted-syntax': ['error', ...SYNTAX, ...NAMES] },
  },
  {
    // Only these read the environment.
    files: ['**/config.ts'],
    rules: { 'no-restricted-properties': 'off' },
  },
  {
    // The one file that runs in a browser.
    files: ['server/page/live.js'],
    extends: [tseslint.configs.disableTypeChecked],
    languageOptions: {
      globals: Object.fromEntries(
        ['document', 'location', 'fetch', 'getSelection', 'setTimeout', 'clearTimeout', 'AbortSignal', 'DOMParser'].map(name => [
          name,
          'readonly',
        ]),
      ),
      parserOptions: { projectService: false },
    },
  },
  {
    // Plain JavaScript: build.js runs before anything is compiled, and health.js needs nothing else of this repository.
    files: ['local/build.js', 'docker/node/health.js'],
    extends: [tseslint.configs.disableTypeChecked],
    languageOptions: {
      globals: Object.fromEntries(['process', 'fetch', 'AbortSignal', 'Buffer'].map(name => [name, 'readonly'])),
      parserOptions: { projectService: false },
    },
  },
  {
    // ESLint itself loads it.
    files: ['testing/no-import-cycle.js'],
    extends: [tseslint.configs.disableTypeChecked],
    languageOptions: { parserOptions: { projectService: false } },
  },
  {
    files: ['**/*.test.ts', '**/*.test.tsx'],
    rules: {
      'import-x/no-restricted-paths': 'off',
      // tap itself waits for its subtests.
      '@typescript-eslint/no-floating-promises': [
        'error',
        {
          allowForKnownSafeCalls: [
            { from: 'package', package: '@tapjs/test', name: 'test' },
            { from: 'package', package: '@tapjs/core', name: 'test' },
          ],
        },
      ],
    },
  },
)
