"""Make the bucket of Open WebUI, if it is not there: a job that runs in Open WebUI's image, which has boto3."""

import os

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

bucket = os.environ["S3_BUCKET_NAME"]
region = os.environ["S3_REGION_NAME"]
client = boto3.client(
    "s3",
    endpoint_url=os.environ["S3_ENDPOINT_URL"],
    region_name=region,
    aws_access_key_id=os.environ["S3_ACCESS_KEY_ID"],
    aws_secret_access_key=os.environ["S3_SECRET_ACCESS_KEY"],
    config=Config(s3={"addressing_style": os.environ["S3_ADDRESSING_STYLE"]}, retries={"total_max_attempts": 10}),
)
try:
    client.head_bucket(Bucket=bucket)
except ClientError as error:
    if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
        raise SystemExit(f"S3_BUCKET_NAME={bucket} cannot be used with this key: {error}") from None
    # AWS refuses us-east-1 as a constraint, since it is where buckets are without one.
    place = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    client.create_bucket(Bucket=bucket, **place)
    print(f"made the bucket {bucket}")
else:
    print(f"the bucket {bucket} is there")
