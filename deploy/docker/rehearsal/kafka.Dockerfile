# A stand-in for apache/kafka: the jars, and an entry point that reads the same KAFKA_... variables.
FROM stand-in/base:1
COPY . /opt/kafka/libs/
RUN mkdir -p /var/lib/kafka/data && chown 1000:1000 /var/lib/kafka/data
USER 1000:1000
ENTRYPOINT ["python3", "/opt/kafka/libs/kafka_entrypoint.py"]
