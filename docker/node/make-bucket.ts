// Makes the bucket of ARCHIVE_URL if it does not exist, because the object store of compose.yaml starts empty.
import { CreateBucketCommand, HeadBucketCommand, S3Client } from '@aws-sdk/client-s3'
import { readConfig } from '../../archiver/config.ts'

const { archiveUrl, s3Endpoint } = readConfig()
const Bucket = new URL(archiveUrl).hostname
const client = new S3Client({
  ...(s3Endpoint ? { endpoint: s3Endpoint, forcePathStyle: true } : {}),
  requestChecksumCalculation: 'WHEN_REQUIRED',
})
try {
  await client.send(new HeadBucketCommand({ Bucket }))
  console.log(`bucket ${Bucket} exists`)
} catch (error) {
  if (!(error instanceof Error && error.name === 'NotFound')) throw error
  await client.send(new CreateBucketCommand({ Bucket }))
  console.log(`bucket ${Bucket} was made`)
}
